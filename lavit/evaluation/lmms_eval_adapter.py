"""LaVIT as a model of lmms-eval, which finds it by the entry point ``lmms_eval.models``:

    lmms-eval --model lavit --model_args pretrained=DIR --tasks ok_vqa

Only lmms-eval imports this module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from PIL import Image

from lavit.language.inference import QUESTION
from lavit.language.postprocessing import cut_answer, cut_caption
from lavit.language.prompt_embedding import PromptReader
from lavit.training.engine import distributed

CUTS: dict[str, Callable[[str], str]] = {"answer": cut_answer, "caption": cut_caption, "none": str.strip}


def manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("lavit", simple_class_path=f"{__name__}.LaVITForLmmsEval")


class LaVITForLmmsEval(lmms):
    """Answers about one image each, as the release asks for them, or captions.

    pretrained: folder of a LaVIT. batch_size: images at a time. device: cpu, cuda, cuda:1; None: a GPU if there is one.
    template: how a task's text is put, ``{}`` is the text; without it (template= ) the text stands as it is. ask:
        "answer", or "caption" for tasks whose text is only a request for a caption: LaVIT writes them without.
    cut: what becomes of a text: "answer" or "caption" as in the release, or "none"; by default as is asked.
    num_beams, max_new: in place of the task's; where neither says, the model's own, or else the release's.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 16,
        device: str | None = None,
        template: str = QUESTION,
        ask: str = "answer",
        cut: str | None = None,
        num_beams: int | None = None,
        max_new: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if unknown := [name for name in others if name not in ("max_batch_size",)]:
            raise ValueError(f"model_args: there is no {unknown[0]}")
        if ask not in ("answer", "caption"):
            raise ValueError(f"ask: expected answer or caption, got {ask!r}")
        if cut is not None and cut not in CUTS:
            raise ValueError(f"cut: expected one of {', '.join(CUTS)}, got {cut!r}")
        from lavit.language.model import LaVIT
        from lavit.language.processing import LaVITProcessor

        self.device = distributed.pick_device(device or "auto")
        self.model: Any = LaVIT.from_pretrained(pretrained, local_files_only=True).eval().to(self.device)
        self.processor = LaVITProcessor.from_pretrained(pretrained, local_files_only=True)
        self.batch_size = 16 if batch_size == "auto" else int(batch_size)
        self.template, self.ask, self.cut = template or "{}", ask, CUTS[cut or ask]
        self.chosen = {name: value for name, value in (("num_beams", num_beams), ("max_new", max_new)) if value}
        self._rank, self._world_size = distributed.rank(), distributed.world_size()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text for each request, cut, and at the first of the task's stop strings."""
        found: dict[int, str] = {}
        for numbers, settings, until in self._batches(requests):
            images = [self._image(requests[number].args) for number in numbers]
            shared = {"batch_size": len(images), "cut": str, **settings}
            if self.ask == "caption":
                texts = self.model.caption(images, self.processor, **shared)
            else:
                asked = [requests[number].args[0] for number in numbers]
                texts = self.model.answer(images, asked, self.processor, template=self.template, **shared)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = self.cut(_before(text, until))
                self.cache_hook.add_partial("generate_until", requests[number].args[:2], found[number])
        return [found[number] for number in range(len(requests))]

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, greedy) of each continuation: its negative log-probability, in nats, as lmms-eval's tasks take the
        least of the choices; and whether each of its tokens is the likeliest of the text's."""
        found = []
        for request in requests:
            context, continuation, visuals, number, task, split = request.args
            document = self.task_dict[task][split][number]
            text = continuation if isinstance(continuation, str) else continuation(document)
            found.append(self._likelihood(context, str(text), visuals(document)))
        # lmms-eval 0.7 makes a text of a bare pair, and its tasks of several choices then fail on that.
        whole = getattr(importlib.import_module("lmms_eval.api.instance"), "GenerationResult", None)
        return found if whole is None else [whole(pair) for pair in found]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("LaVIT has no conversation of several rounds")

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Any], list[str]]]:
        """Numbers of requests with the same settings, at most batch_size of them; their settings and stop strings."""
        groups: dict[str, list[int]] = {}
        asked = [self._settings(request.args[1]) for request in requests]
        for number, settings in enumerate(asked):
            groups.setdefault(repr(settings), []).append(number)
        for numbers in groups.values():
            for begin in range(0, len(numbers), self.batch_size):
                yield numbers[begin : begin + self.batch_size], *asked[numbers[0]]

    def _settings(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        settings: dict[str, Any] = {}
        if asked.get("num_beams"):
            settings["num_beams"] = int(asked["num_beams"])
        if asked.get("max_new_tokens"):
            settings["max_new"] = int(asked["max_new_tokens"])
        settings |= self.chosen
        until = asked.get("until") or []
        return settings, [until] if isinstance(until, str) else list(until)

    def _image(self, arguments: tuple[Any, ...]) -> Image.Image:
        _, _, visuals, number, task, split = arguments
        images = visuals(self.task_dict[task][split][number])
        if len(images) != 1 or not isinstance(images[0], Image.Image):
            raise ValueError(f"{task}, document {number}: expected one image, which LaVIT answers about, got {images}")
        return images[0]

    def _likelihood(self, context: str, continuation: str, images: Sequence[Any]) -> tuple[float, bool]:
        ids = torch.tensor(self.processor.tokenizer.encode(continuation, add_special_tokens=False), device=self.device)
        if len(ids) == 0:
            return 0.0, True
        prompt = [[*images, context] if context else list(images)]
        about: dict[str, Any] = {"what": "request", "new_tokens": len(ids), "batch_size": 1, "on_error": "raise"}
        reader = PromptReader(self.model, self.processor, prompt, template=self.template, **about)
        (batch,) = reader.batches([0])
        before = batch.rows.unbind()[0]
        language_model = self.model.language_model
        after = language_model.get_input_embeddings()(ids).to(before.dtype)
        logits = language_model(inputs_embeds=torch.cat([before, after]).unsqueeze(0)).logits[0]
        rows = logits[len(before) - 1 : -1, : self.model.vocabulary.size].float().log_softmax(-1)
        likeliest = rows[:, : self.model.vocabulary.text_size].argmax(-1)  # as texts are written
        return -float(rows.gather(1, ids.unsqueeze(1)).sum()), bool((likeliest == ids).all())


def _before(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.split(stop, 1)[0]
    return text
