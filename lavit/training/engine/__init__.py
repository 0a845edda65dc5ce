"""What every stage is trained with, and what knows none of them: the loop, checkpoints, processes, schedules, metrics,
configuration."""
