"""The reasoning_gym data sets that are refused, each with the reason; importing this does not import the library."""

from collections.abc import Mapping

_RUNS_ANSWERS = "the library evaluates what a model wrote as Python to score it"
_RUNS_QUESTIONS = "the library evaluates the question's data as Python to score an answer"
_UNSTEADY = "the library makes other questions in every process, whatever the seed"
REFUSED: Mapping[str, str] = {
    "binary_matrix": _RUNS_ANSWERS,
    "countdown": _RUNS_ANSWERS,
    "intermediate_integration": _RUNS_ANSWERS,
    "n_queens": _RUNS_ANSWERS,
    "polynomial_multiplication": _RUNS_ANSWERS,
    "puzzle24": _RUNS_ANSWERS,
    "simple_integration": _RUNS_ANSWERS,
    "spiral_matrix": _RUNS_ANSWERS,
    "string_insertion": _RUNS_ANSWERS,
    "bitwise_arithmetic": _RUNS_QUESTIONS,
    "number_sorting": _RUNS_QUESTIONS,
    "codeio": "the library runs programs that a model wrote to make its questions",
    "composite": "it mixes other data sets; name one of them",
    "coin_flip": "the library gives the full mark to any first digits of the answer",
    "complex_arithmetic": "the library gives the full mark to the answer nan",
    "game_of_life_halting": "the library gives the full mark to any answer",
    "isomorphic_strings": _UNSTEADY,
    "list_functions": _UNSTEADY,
    "ransom_note": _UNSTEADY,
}
