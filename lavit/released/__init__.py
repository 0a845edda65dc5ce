"""Released checkpoints: from the release's folders to this library's models."""
