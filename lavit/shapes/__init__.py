"""The shapes world: scenes drawn by a program, of which everything is known, and programs that judge what models make
of them.

`world` draws; `questions`, `edits` and `sequences` say what there is to say; `judge` reads pixels, `probe` features,
and `scores` compares both with the truth.
"""
