"""Builds the base model that ships with the quickstart: trains a tokenizer, then a model from random weights.

    python -m tpt_jax.quickstart.make_base --output DIR

A LLaMA of 0.9 million parameters is trained on the corpus in corpus.py, drawn from the base split of the quickstart's
own templates. Splits are disjoint in (template, numbers), so it sees no problem the quickstart trains or tests on.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from tpt_jax.config import OptimizerConfig, TrainConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.models.huggingface_config import from_huggingface
from tpt_jax.quickstart.corpus import Text, drills, worked_solutions
from tpt_jax.tasks import GsmSymbolicConfig
from tpt_jax.terminal import say

SPECIAL_TOKENS = ("<pad>", "<bos>", "<user>", "<model>", "<end_of_turn>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<model>{{ message['content'] }}<end_of_turn>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
# A large learning rate and weight decay: this is pretraining from random weights, not fine-tuning.
TRAINING = TrainConfig(
    num_epochs=4,
    rows=24,
    sequence_length=160,
    optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, warmup_fraction=0.05, weight_decay=0.01),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write, in Hugging Face format")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/quickstart.yaml"), help="the config whose task to train for"
    )
    parser.add_argument("--num_problems", type=int, default=16_000, help="worked solutions in the corpus")
    parser.add_argument("--wrong_share", type=float, default=0.4, help="share of them with a wrong answer")
    parser.add_argument("--num_drills", type=int, default=70_000, help="arithmetic drills in the corpus")
    parser.add_argument("--num_epochs", type=int, default=TRAINING.num_epochs)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    task = load_config(args.config).task
    if not isinstance(task, GsmSymbolicConfig):
        parser.error(f"{args.config}: task.name must be gsm_symbolic")
    solutions = worked_solutions(task, args.num_problems, args.wrong_share, args.seed)
    texts = [*solutions, *drills(args.num_drills, task.max_number, args.seed)]
    write_tokenizer(args.output, texts[: args.num_problems])
    train(args.output, texts, args.num_epochs, args.seed)


def write_tokenizer(folder: Path, texts: list[Text]) -> None:
    """Trains a byte-level BPE tokenizer with single-digit tokens and writes it, and config.json, to the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((string for text in texts for string in (text.prompt, text.completion)), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<end_of_turn>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": "bfloat16"}, indent=2) + "\n")


def train(folder: Path, texts: list[Text], num_epochs: int, seed: int) -> None:
    """Trains a model from random weights on the completions and writes it to the tokenizer's folder."""
    from tpt_jax.config import MeshConfig
    from tpt_jax.models.huggingface_export import save_parameters
    from tpt_jax.models.transformer import initialize_parameters
    from tpt_jax.prompts import load_prompt
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.train.compile import compile_trainer
    from tpt_jax.train.data import split_by_length
    from tpt_jax.train.fine_tuning import FineTuning

    prompt = load_prompt(folder, instruction="")
    examples = [prompt.example(text.prompt, prompt.completion_ids(text.completion)) for text in texts]
    model = from_huggingface(CONFIG)
    config = dataclasses.replace(TRAINING, num_epochs=num_epochs)
    examples, too_long = split_by_length(examples, config.sequence_length)
    program = compile_trainer(model, make_mesh(MeshConfig()), compute_dtype="float32", train=config)
    training = FineTuning(program, lambda: initialize_parameters(model, program.layout, seed), examples, config, seed)
    say(f"{len(examples)} texts ({len(too_long)} too long), {training.num_steps} steps")
    for record in training:
        if record.step % 50 == 0:
            say(f"step {record.step} of {record.num_steps}: loss {record.loss:.3f}")
    save_parameters(folder, model, training.parameters, dtype="bfloat16")


if __name__ == "__main__":
    main()
