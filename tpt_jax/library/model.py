"""A model in memory: `load_model`, `Model` and `mesh`."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tpt_jax.checkpoints.model_folder import ModelFolder, WeightType, check_export_folder, export, export_adapters
from tpt_jax.config import LoRAConfig, MeshConfig, TrainConfig
from tpt_jax.config_parsing import check_value
from tpt_jax.errors import UserError
from tpt_jax.io.hub_push import find_target
from tpt_jax.io.paths import to_path
from tpt_jax.library.model_card import make_card
from tpt_jax.library.push import push
from tpt_jax.models.masters import add_adapters, merge_adapters
from tpt_jax.prompts import Prompt, load_prompt
from tpt_jax.records import QuestionSet
from tpt_jax.runtime import environment, hosts
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.think.sampler import SamplerProgram, compile_sampler
from tpt_jax.think.state import SlotShape
from tpt_jax.train.compile import TrainerProgram, compile_trainer, compiled_settings


class Programs:
    """Compiled programs, by their shapes and settings; calls with equal ones share a program."""

    def __init__(self) -> None:
        self._programs: dict[Any, Any] = {}

    def sampler(self, model: "Model", shape: SlotShape, stop_ids: tuple[int, ...]) -> SamplerProgram:
        """Reshard and sampling programs for one shape, under the name "sample"."""
        return self._get(
            (model.arithmetic, shape, stop_ids),
            lambda: compile_sampler(
                model.folder.config,
                model.mesh,
                compute_dtype=model.compute_dtype,
                shapes={"sample": shape},
                stop_ids=stop_ids,
                lora=model.lora,
            ),
        )

    def trainer(self, model: "Model", config: TrainConfig) -> TrainerProgram:
        """Optimizer state and train step; the learning rate and the number of steps are not compiled in."""
        compiled = compiled_settings(config)
        return self._get(
            (model.arithmetic, compiled),
            lambda: compile_trainer(model.folder.config, model.mesh, compute_dtype=model.compute_dtype, train=compiled),
        )

    def _get(self, key: Any, compile_program: Callable[[], Any]) -> Any:
        if key not in self._programs:
            self._programs[key] = compile_program()
        return self._programs[key]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model on the devices of a mesh. It never changes: `finetune` returns another model.

    Attributes:
      folder: where it was loaded from; config and tokenizer are read there.
      parameters: fp32 weights, or frozen weights with adapters; sharded for training over the whole mesh.
      compute_dtype: type of sampling and of the forward and backward pass.
      lora: settings of the adapters.
      programs: those compiled so far; models fine-tuned from this one share them.
    """

    folder: ModelFolder
    mesh: Mesh
    parameters: nnx.State
    compute_dtype: str
    lora: LoRAConfig | None = None
    programs: Programs = dataclasses.field(default_factory=Programs)

    def __repr__(self) -> str:
        size = self.folder.config.num_parameters / 1e6
        return f"<{self.folder.config.family} model of {size:,.1f}M parameters, mesh {dict(self.mesh.shape)}>"

    @property
    def arithmetic(self) -> Any:
        """What programs are compiled for, besides their shapes."""
        return self.folder.config, self.mesh, self.compute_dtype, self.lora

    def live_parameters(self) -> nnx.State:
        """The parameters.

        Raises:
          UserError: they were donated to `finetune`.
        """
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.parameters)):
            raise UserError("this model's weights were donated to finetune; use the model it returned")
        return self.parameters

    def parameters_to_train(self, lora: LoRAConfig | None, seed: int, *, donate: bool) -> nnx.State:
        """The parameters with these adapters, for a caller that donates them.

        Adapters with other settings are merged into the weights first.

        Args:
          seed: for new adapters.
          donate: give up the model's own parameters instead of copying them.
        """
        parameters = self.live_parameters()
        if lora != self.lora:
            weights = parameters if self.lora is None else merge_adapters(parameters)
            if lora is not None:
                weights = add_adapters(weights, self.folder.config, Layout(self.mesh, TRAIN_RULES), lora, seed)
            parameters = weights
        return parameters if donate else jax.tree.map(jnp.copy, parameters)

    def prompt(self, questions: QuestionSet) -> Prompt:
        """The prompt format for these questions, in sampling and training alike."""
        return load_prompt(
            self.folder.path, questions.instruction, questions.shots, template=questions.template, stop=questions.stop
        )

    def export(self, output: str | os.PathLike[str], dtype: WeightType = "float32") -> None:
        """Writes a Hugging Face folder that transformers and vLLM load, with a model card.

        `tpt.push` uploads it.

        Args:
          dtype: type of the written weights. bfloat16 halves the file, and rounds away changes of less than 1/512 of a
            weight: a short training of a model that was published in bfloat16 may lose most of what it learnt.

        Raises:
          UserError: the folder is not empty, or not on a disk.
        """
        export(self.folder, self.live_parameters(), output, dtype)
        _write_card(self.folder, output, dtype, adapter=False)


def mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of devices with the axes `data`, `fsdp` and `tensor`; one size may be -1 for all remaining devices.

    Args:
      devices: all devices if not given.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    environment.prepare()
    return make_mesh(MeshConfig(data, fsdp, tensor), devices)


def load_model(name: str | os.PathLike[str], *, mesh: Mesh | None = None, compute_dtype: str | None = None) -> Model:
    """Loads a model onto the devices.

    Args:
      name: a Hugging Face folder, a run's checkpoint (runs/x/checkpoints/003), with its adapters if it has any, or
        "quickstart" for the model that ships with the package; or the name of a model that is downloaded, as
        `model.path` in a config.
      mesh: all devices along `fsdp` if not given.
      compute_dtype: "bfloat16" or "float32"; if not given float32 on a CPU, where it is faster, and bfloat16 elsewhere.

    Raises:
      UserError: the folder has no model, or an unsupported or damaged one; or there is no model of that name.
      MachineError: a model has to be downloaded, and cannot be.
    """
    environment.prepare()
    check_value("compute_dtype", compute_dtype, Literal["bfloat16", "float32"] | None)
    folder = ModelFolder.open(name)
    mesh = mesh if mesh is not None else make_mesh(MeshConfig())
    if compute_dtype is None:
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    lora = folder.adapters.lora if folder.adapters else None
    return Model(folder, mesh, folder.load(Layout(mesh, TRAIN_RULES), lora=lora), compute_dtype, lora)


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    dtype: WeightType = "float32",
    *,
    adapter: bool = False,
    push_to: str | None = None,
    private: bool = False,
) -> str | None:
    """Writes a run's checkpoint as a Hugging Face folder, and pushes it to the Hub if asked to, as `tpt export`.

    Args:
      output: the folder; not needed if the model is pushed.
      adapter: write only the checkpoint's adapters, for PEFT, in fp32; otherwise they are merged into the weights.
      push_to, private: as `name` and `private` of `push`; from one host only.

    Returns:
      The URL of the repository that it was pushed to.

    Raises:
      UserError: there is no such checkpoint, it has no adapters, the output folder is not empty, or the repository is
        not ours. Nothing is written then.
      MachineError: the Hub cannot be reached.
    """
    if output is None and push_to is None:
        raise UserError("output: give the folder to write, or push_to")
    if output is not None:
        check_export_folder(to_path(output))
    environment.prepare()
    if push_to is not None:
        if hosts.count() > 1:
            raise UserError(
                "--push: several hosts would wait for the upload; give --output, then tpt.push(FOLDER, NAME)"
            )
        card = make_card(ModelFolder.open(checkpoint), dtype, adapter=adapter)
        find_target(push_to, card.metadata)  # before what takes time
    with contextlib.ExitStack() as stack:
        folder = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="tpt_export_"))
        if adapter:
            source = ModelFolder.open(checkpoint)
            export_adapters(source, Layout(make_mesh(MeshConfig()), TRAIN_RULES), folder)
            _write_card(source, folder, dtype, adapter=True)
        else:
            load_model(checkpoint).export(folder, dtype)
        return None if push_to is None else push(folder, push_to, private=private)


def _write_card(source: ModelFolder, folder: str | os.PathLike[str], dtype: WeightType, *, adapter: bool) -> None:
    if hosts.is_first():
        make_card(source, dtype, adapter=adapter).write(to_path(folder))
    hosts.barrier("model card")
