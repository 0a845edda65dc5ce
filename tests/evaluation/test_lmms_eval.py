"""LaVIT within lmms-eval: its requests become the model's own calls, and a task of ten local images runs from its name.

Without lmms-eval its base class is stood in for; the last test needs the package itself.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_language_model, tokenizer

NAME = "lavit.evaluation.lmms_eval_adapter"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_language_model(folder, tokenizer())
    return folder


@pytest.fixture
def adapter(monkeypatch):
    """The module, on lmms-eval's own base class, or else on one that has what it needs of that."""

    class Base:
        def __init__(self):
            self._rank, self._world_size, self.task_dict = 0, 1, {}
            self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)

    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.instance"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = Base
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def pictures(count):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(count)]


class Requests:
    """Of a task "t" with documents that are images."""

    def __init__(self, model, count=5):
        self.images = pictures(count)
        model.task_dict = {"t": {"test": [{"image": image} for image in self.images]}}

    def __call__(self, *arguments):
        """(context, settings or continuation, number of the document) each."""
        visuals = lambda document: [document["image"]]  # noqa: E731
        return [SimpleNamespace(args=(a, b, visuals, number, "t", "test")) for a, b, number in arguments]


def likelihoods(model, requests):
    """The pairs, which newer versions want wrapped."""
    return [getattr(one, "text", one) for one in model.loglikelihood(requests)]


def loaded(adapter, saved, **more):
    return adapter.LaVITForLmmsEval(str(saved), device="cpu", **more)


def test_answers_are_the_models_own_with_the_tasks_settings(adapter, saved):
    model = loaded(adapter, saved, batch_size=2)
    requests = Requests(model)
    short, long = {"max_new_tokens": 3, "num_beams": 1}, {"max_new_tokens": 6}
    asked = [(f"what {n}?", long if n % 2 else short, n) for n in range(5)]
    found = model.generate_until(requests(*asked))
    for text, (question, settings, number) in zip(found, asked, strict=True):
        own = {"max_new": settings["max_new_tokens"], **({"num_beams": 1} if settings is short else {})}
        assert text == model.model.answer([requests.images[number]], [question], model.processor, **own)[0]
    assert len(set(found)) > 1


def test_captions_are_written_without_the_tasks_words(adapter, saved):
    model = loaded(adapter, saved, ask="caption", max_new=5, num_beams=1)
    requests = Requests(model, 2)
    found = model.generate_until(requests(("Describe it.", {"max_new_tokens": 90, "until": ["."]}, 0), ("", {}, 1)))
    own = model.model.caption(requests.images, model.processor, num_beams=1, min_new=5, max_new=5)
    assert found == list(own)


def test_texts_end_at_the_first_stop_string_and_are_cut_as_asked(adapter, saved, monkeypatch):
    model = loaded(adapter, saved, cut="none")
    requests = Requests(model, 1)
    monkeypatch.setattr(model, "model", SimpleNamespace(answer=lambda *a, cut, **k: [cut(" Yes, it. is STOP no")]))
    assert model.generate_until(requests(("?", {"until": ["STOP", "\n\n"]}, 0))) == ["Yes, it. is"]
    assert model.generate_until(requests(("?", {"until": "it"}, 0))) == ["Yes,"]
    monkeypatch.setattr(model, "cut", adapter.CUTS["answer"])
    assert model.generate_until(requests(("?", {}, 0)))[0].lower() == "yes"


def test_likelihoods_are_those_of_the_tokens_one_by_one(adapter, saved):
    model = loaded(adapter, saved)
    requests = Requests(model, 2)
    text, question = " a red circle", "what?"
    ((value, greedy),) = likelihoods(model, requests((question, text, 1)))
    ids = model.processor.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 1 and not greedy
    wanted = 0.0
    for place, token in enumerate(ids):  # each on a text that ends before it
        rows = _next(model, requests.images[1], question, ids[:place])
        wanted -= float(rows.log_softmax(-1)[token])
    assert value == pytest.approx(wanted, rel=1e-4)
    best = int(_next(model, requests.images[1], question, [])[: model.model.vocabulary.text_size].argmax())
    word = model.processor.tokenizer.decode([best])
    if model.processor.tokenizer.encode(word, add_special_tokens=False) == [best]:
        assert likelihoods(model, requests((question, word, 1)))[0][1]
    other = likelihoods(model, requests((question, lambda document: text, 0)))[0][0]
    assert other != value and likelihoods(model, requests((question, "", 0))) == [(0.0, True)]


@torch.no_grad()
def _next(model, image, question, ids):
    """Scores of the next token after the prompt and ``ids``, from the prompt's own assembly."""
    from lavit.language.inference import QUESTION
    from lavit.language.prompt_embedding import PromptReader

    about = {"what": "p", "new_tokens": 9, "batch_size": 1, "on_error": "raise", "template": QUESTION}
    reader = PromptReader(model.model, model.processor, [[image, question]], **about)
    ((_, _, rows),) = reader.batches([0])
    embedded = rows.unbind()[0]
    for token in ids:
        own = model.model.language_model.get_input_embeddings()(torch.tensor([token]))
        embedded = torch.cat([embedded, own])
    return model.model.language_model(inputs_embeds=embedded[None]).logits[0, -1]


def test_the_package_is_found_by_the_entry_point_of_this_one(adapter):
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (target,) = re.findall(r'^\[project\.entry-points\."lmms_eval\.models"\]\nlavit = "(.*)"$', text, re.M)
    module, function = target.split(":")
    assert module == NAME and callable(getattr(adapter, function))


def test_what_it_cannot_do_is_told_with_the_task(adapter, saved):
    model = loaded(adapter, saved)
    requests = Requests(model, 1)
    model.task_dict["t"]["test"][0]["image"] = "no image"
    with pytest.raises(ValueError, match="t, document 0: expected one image"):
        model.generate_until(requests(("?", {}, 0)))
    with pytest.raises(NotImplementedError):
        model.generate_until_multi_round([])
    for settings, message in (
        ({"ask": "draw"}, "ask: expected answer or caption, got 'draw'"),
        ({"cut": "long"}, "cut: expected one of answer, caption, none, got 'long'"),
        ({"prompt": "x"}, "model_args: there is no prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded(adapter, saved, **settings)


def test_a_task_of_ten_local_images_runs_by_the_models_name(saved, tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval.evaluator", reason="pip install lmms-eval")
    datasets = pytest.importorskip("datasets", reason="pip install lmms-eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    if "lavit" not in MODEL_REGISTRY_V2.list_model_names():  # run from the sources, which have no entry points
        MODEL_REGISTRY_V2.register_manifest(importlib.import_module(NAME).manifest())
    assert MODEL_REGISTRY_V2.get_model_class("lavit").__module__ == NAME
    rows = {"image": pictures(10), "question": [f"what {n}?" for n in range(10)], "answer": ["a"] * 10}
    data = datasets.Dataset.from_dict(rows | {"choices": [["red circle", "two dogs"]] * 10})
    data = data.cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "data"))
    (tmp_path / "tasks").mkdir()
    shared = {
        "dataset_path": str(tmp_path / "data"),
        "dataset_kwargs": {"load_from_disk": True},
        "test_split": "test",
        "doc_to_visual": "!function utils.visual",
        "doc_to_text": "{{question}}",
        "metadata": [{"version": 0.0}],
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    written = {"task": "ten_written", "output_type": "generate_until", "doc_to_target": "answer"}
    written |= {"generation_kwargs": {"max_new_tokens": 3, "num_beams": 1, "until": ["\n\n"]}}
    written |= {"metric_list": [{"metric": "exact_match", **metric}]}
    chosen = {"task": "ten_chosen", "output_type": "multiple_choice", "doc_to_target": 0, "doc_to_choice": "choices"}
    chosen |= {"metric_list": [{"metric": "acc", **metric}]}
    (tmp_path / "tasks" / "utils.py").write_text("def visual(doc):\n    return [doc['image'].convert('RGB')]\n")
    for task in (written, chosen):
        text = json.dumps({**shared, **task}, indent=1).replace('"!function utils.visual"', "!function utils.visual")
        (tmp_path / "tasks" / f"{task['task']}.yaml").write_text(text)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model="lavit",
        model_args=f"pretrained={saved}",
        tasks=["ten_written", "ten_chosen"],
        batch_size=4,
        device="cpu",
        task_manager=manager,
        bootstrap_iters=0,
    )
    samples = found["samples"]["ten_written"]
    assert len(samples) == len(found["samples"]["ten_chosen"]) == 10
    model = loaded(importlib.import_module(NAME), saved)
    answers = model.model.answer(rows["image"], rows["question"], model.processor, num_beams=1, max_new=3)
    assert [sample["filtered_resps"][0] for sample in samples] == list(answers)
    visuals = lambda document: [document["image"]]  # noqa: E731
    model.task_dict = {"t": {"test": [{"image": image} for image in rows["image"]]}}
    first = 0  # the first choice is the right one
    for number, question in enumerate(rows["question"]):
        both = (" red circle", " two dogs")
        asked = [SimpleNamespace(args=(question, text, visuals, number, "t", "test")) for text in both]
        one, two = likelihoods(model, asked)
        first += one[0] < two[0]
    assert found["results"]["ten_chosen"]["acc,none"] == pytest.approx(first / 10)
