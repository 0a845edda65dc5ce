"""What a tokenizer's tokens are worth: probes of what they still tell, and statistics of how they are spent."""

from lavit.evaluation.probe import CellProbe, ProbeScore, chance, train_probe
from lavit.evaluation.statistics import TokenStatistics, tokenize_and_decode, tokens_by_objects

__all__ = [
    "CellProbe",
    "ProbeScore",
    "TokenStatistics",
    "chance",
    "tokenize_and_decode",
    "tokens_by_objects",
    "train_probe",
]
