"""The notebooks in examples/, executed with the small model that ships with the package in place of a real one."""

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from processes import ROOT, process_environment

EXAMPLES = ROOT / "examples"
QUICK = (
    "--num_rounds 1 --task.num_train 40 --task.num_test 8 --think.num_questions 16 --think.num_samples 2"
    " --think.num_slots 16 --prune.max_traces 8 --train.max_steps 2 --evaluate.num_samples 1 --evaluate.num_slots 8"
)


def execute(name: str, parameters: str, folder: Path, last: str = "") -> list[Any]:
    """Runs a notebook in a folder, with other values in its first code cell; returns the code cells that have run.

    Args:
      last: words of the last cell to run; "" for all.
    """
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    given = {line.partition(" =")[0] for line in parameters.splitlines()}
    assert {line.partition(" =")[0] for line in code[0].source.splitlines()} == given
    code[0].source = parameters
    if last:
        code = code[: code.index(cell_with(code, last)) + 1]
        notebook.cells = code
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**process_environment(optimization=1), "JPY_PARENT_PID": ""})
    return code


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def cell_with(code: list[Any], words: str) -> Any:
    return next(cell for cell in code if words in cell.source)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_kept_and_say_nothing_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2
    shown = "".join(str(output) for cell in code for output in cell.outputs)
    assert not [words for words in (str(ROOT), "/home/", "/root/", "/opt/", "\x1b") if words in shown]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert path.stat().st_size < 600_000


def test_the_notebook_for_kaggle_runs_and_goes_on_in_a_second_session(tmp_path: Path) -> None:
    import transformers

    def parameters(run_dir: str, earlier: str) -> str:
        return "\n".join(
            (
                "REPOSITORY = None",
                'MODEL = "quickstart"',
                f'CONFIG = "{ROOT / "configs" / "quickstart.yaml"}"',
                f'SETTINGS = "{QUICK}"',
                f'RUN_DIR = "{run_dir}"',
                f'EARLIER = "{earlier}"',
                "TOPOLOGY = None",
                "HOURS = 0.1",
            )
        )

    code = execute("kaggle_gemma2_2b.ipynb", parameters("run", "nowhere"), tmp_path)
    assert printed(cell_with(code, "timeout")).endswith("done\n")
    assert "srcdoc" in str(cell_with(code, "write_report").outputs)
    assert "model.safetensors" in printed(cell_with(code, "export_checkpoint"))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "submission")
    traces = sorted((tmp_path / "run").glob("rounds/*/traces/*"))
    assert traces
    again = execute("kaggle_gemma2_2b.ipynb", parameters("run2", str(tmp_path / "run")), tmp_path, last="timeout")
    shown = printed(cell_with(again, "timeout"))
    assert shown.endswith("done\n")
    assert "round 1 train" not in shown  # the earlier session did it
    for path in traces:
        assert (tmp_path / "run2" / path.relative_to(tmp_path / "run")).read_bytes() == path.read_bytes()


def test_the_notebook_of_ones_own_task_runs_twice(tmp_path: Path) -> None:
    parameters = 'MODEL = "quickstart"\nFOLDER = "mine"\nSETTINGS = {"num_rounds": 1, "evaluate.num_samples": 2}'
    code = execute("own_task.ipynb", parameters, tmp_path)
    rounds = printed(cell_with(code, "pass_at_1")).splitlines()
    assert [line.split(":")[0] for line in rounds] == ["round 0", "round 1"]
    assert "srcdoc" in str(cell_with(code, "show_report").outputs)
    assert (tmp_path / "mine" / "improved" / "README.md").is_file()
    verdicts = printed(cell_with(code, "check_task")).splitlines()
    assert len(verdicts) == 2
