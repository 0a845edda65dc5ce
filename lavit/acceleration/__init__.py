"""The release's own program, faster: its modules keep their parameters and get this library's arithmetic."""

from __future__ import annotations

from lavit.acceleration.drop_in import accelerate, restore
from lavit.acceleration.report import Left, Replaced, Report

__all__ = ["Left", "Replaced", "Report", "accelerate", "restore"]
