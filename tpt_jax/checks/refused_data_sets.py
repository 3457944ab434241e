"""The reasoning_gym data sets we refuse, with the reasons. Importing this module does not import the library."""

from collections.abc import Mapping

_EVALUATES_ANSWERS = "the library evaluates the model's answer as Python to score it"
_EVALUATES_QUESTIONS = "the library evaluates the question's data as Python to score an answer"
_NOT_REPRODUCIBLE = "the library generates different questions in every process, despite the seed"
REFUSED: Mapping[str, str] = {
    "binary_matrix": _EVALUATES_ANSWERS,
    "countdown": _EVALUATES_ANSWERS,
    "intermediate_integration": _EVALUATES_ANSWERS,
    "n_queens": _EVALUATES_ANSWERS,
    "polynomial_multiplication": _EVALUATES_ANSWERS,
    "puzzle24": _EVALUATES_ANSWERS,
    "simple_integration": _EVALUATES_ANSWERS,
    "spiral_matrix": _EVALUATES_ANSWERS,
    "string_insertion": _EVALUATES_ANSWERS,
    "bitwise_arithmetic": _EVALUATES_QUESTIONS,
    "number_sorting": _EVALUATES_QUESTIONS,
    "codeio": "the library runs model-written programs to generate its questions",
    "composite": "it mixes other data sets; name one of them",
    "coin_flip": "the library gives full marks to any prefix of the answer's digits",
    "complex_arithmetic": "the library gives full marks to the answer nan",
    "game_of_life_halting": "the library gives full marks to any answer",
    "isomorphic_strings": _NOT_REPRODUCIBLE,
    "list_functions": _NOT_REPRODUCIBLE,
    "ransom_note": _NOT_REPRODUCIBLE,
}
