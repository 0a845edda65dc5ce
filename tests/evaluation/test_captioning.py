"""Laws of the caption scores: of scenes they count what is said to be where; of photographs they are the package's, and
what cannot be computed says why."""

import sys

import numpy as np
import pytest

from lavit.evaluation import captioning
from lavit.evaluation.captioning import METRICS, cut_caption, score_captions, score_scene_captions
from lavit.shapes.questions import possible_scenes
from lavit.shapes.scores import SceneScore
from lavit.shapes.world import caption

REFERENCES = {7: ["a red circle top left", "the circle"], 8: ["a dog"], 9: ["a cat"]}


@pytest.mark.parametrize(
    "text, cut", [(" a dog. It runs.", "a dog"), ("a dog", "a dog"), (".", ""), ("", ""), ("a\n dog .", "a\n dog")]
)
def test_generated_captions_are_cut_as_the_release_cuts_them(text, cut):
    assert cut_caption(text) == cut


def test_scene_captions_are_judged_by_what_they_say_is_where():
    cells = np.array([[1, 0, 0, 2], [0, 5, 0, 0], [3, 4, 0, 0], [0, 0, 6, 0]])
    texts = [caption([1, 0, 0, 2]), "a red square in the middle", caption([3, 0, 7, 0]), "an empty picture"]
    report = score_scene_captions(texts, cells)
    assert report.readable == 3 / 4
    assert report.objects.score == SceneScore(exact=1 / 4, recall=3 / 6, precision=3 / 4)
    assert (report.objects.right, report.objects.missing, report.objects.extra) == (3, 3, 1)
    assert report.as_dict()["objects"]["score"]["recall"] == 0.5


def test_true_captions_score_one():
    cells = possible_scenes()[0][::97]
    report = score_scene_captions([caption(row) for row in cells.tolist()], cells)
    assert report.readable == 1 and report.objects.score == SceneScore(1, 1, 1)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="captions.*2 scenes, got 1"):
        score_scene_captions(["a"], np.ones((2, 4)))
    for wrong in ({7: []}, {}, {7: "a dog"}):
        with pytest.raises(ValueError, match="references.*image 7"):
            score_captions({7: "a dog"}, wrong)
    with pytest.raises(ValueError, match="captions.*3 images"):
        score_captions({}, REFERENCES)


def test_without_the_package_every_metric_says_so(monkeypatch):
    monkeypatch.setattr(captioning, "find_spec", lambda name: None)
    scores = score_captions({7: "a dog", 9: "a cat"}, REFERENCES)
    assert scores.scores == {} and tuple(scores.skipped) == METRICS and scores.missing == [8] and scores.captions == 2
    assert all("not installed (pip install" in reason for reason in scores.skipped.values())
    assert scores.words.exact == 1 / 2 and scores.words.f1 == pytest.approx(1 / 2)  # of two: the circle is no dog
    assert scores.words.guessed_exact.value == 1 / 2 and scores.each == []


# A stand-in for the package: what it gets is what it gives, so that a test sees it.
STAND_IN = {
    "bleu/bleu.py": "class Bleu:\n"
    "    def __init__(self, n): self.n = n\n"
    "    def compute_score(self, known, given, verbose): return [len(known)] * self.n, None\n",
    "rouge/rouge.py": "class Rouge:\n    def compute_score(self, known, given): raise OSError('no space')\n",
    "cider/cider.py": "class Cider:\n"
    "    def compute_score(self, known, given): self.seen(known, given); return 2.0, []\n",
    "spice/spice.py": "class Spice:\n    def compute_score(self, known, given): return 0.25, []\n",
    "spice/__init__.py": "",
    "meteor/meteor.py": "import threading\n"
    "ended = []\n"
    "class Meteor:\n"
    "    def __init__(self): self.lock = threading.Lock()\n"
    "    def compute_score(self, known, given): self.lock.acquire(); raise ValueError('')\n"
    "    def __del__(self): ended.append(self.lock.acquire(timeout=0.1))\n",
    "tokenizer/ptbtokenizer.py": "class PTBTokenizer:\n"
    "    def tokenize(self, texts): return {i: [r['caption'].upper() for r in rows] for i, rows in texts.items()}\n",
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Returns the captions and references that its CIDEr sees."""
    for name, text in STAND_IN.items():
        path = tmp_path / "pycocoevalcap" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    from pycocoevalcap.cider.cider import Cider

    monkeypatch.setattr(Cider, "seen", lambda self, known, given: seen.append((given, known)), raising=False)
    yield seen
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]


def test_a_metric_that_fails_costs_no_other(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(captioning.shutil, "which", lambda name: "/bin/java")
    captions = {7: "a red\ncircle", 8: "  "}
    scores = score_captions(captions, REFERENCES)
    assert scores.scores == {"BLEU-1": 2, "BLEU-2": 2, "BLEU-3": 2, "BLEU-4": 2, "CIDEr": 2}
    assert scores.skipped["ROUGE-L"] == "failed: no space" and scores.skipped["METEOR"] == "failed: ValueError"
    assert "get_stanford_models" in scores.skipped["SPICE"]
    assert scores.tokenizer == "ptb"
    from pycocoevalcap.meteor.meteor import ended

    assert ended == [True]  # the real one would wait for its own lock for ever
    # One line for every text, and none empty: the tokenizer works line by line.
    assert stand_in == [({0: ["A RED CIRCLE"], 1: ["."]}, {0: ["A RED CIRCLE TOP LEFT", "THE CIRCLE"], 1: ["A DOG"]})]

    (tmp_path / "pycocoevalcap" / "spice" / "lib").mkdir()
    (tmp_path / "pycocoevalcap" / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").write_bytes(b"")
    assert score_captions(captions, REFERENCES).scores["SPICE"] == 0.25


def test_without_java_words_are_split_plainly_and_its_metrics_say_so(stand_in, monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)
    scores = score_captions({8: 'A "dog", isn\'t it?'}, REFERENCES)
    assert scores.tokenizer == "plain" and scores.skipped["METEOR"] == scores.skipped["SPICE"] == "there is no java"
    assert stand_in == [({0: ["a dog isn't it"]}, {0: ["a dog"]})]


def test_a_tokenizer_that_loses_lines_is_not_used(stand_in, monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda name: "/bin/java")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setattr(PTBTokenizer, "tokenize", lambda self, texts: {})
    scores = score_captions({8: "a dog"}, REFERENCES)
    assert scores.tokenizer == "plain" and "another number of lines" in scores.skipped["METEOR"]


def test_scores_are_the_packages_own_of_all_and_of_each(monkeypatch):
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=captioning.INSTALL)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)
    captions = {"a": "a dog runs on the grass", "b": "two cats sleep", "c": "a red car"}
    references = {
        "a": ["a dog running on grass", "the dog runs over a field"],
        "b": ["two cats are asleep on a bed", "cats sleeping"],
        "c": ["a man rides a bicycle", "a bicycle on the road"],
    }
    found = score_captions(captions, references)
    given = {key: [text] for key, text in captions.items()}
    mean, each = cider.Cider().compute_score(references, given)
    assert found.scores["CIDEr"] == pytest.approx(mean) and found.each == pytest.approx(list(each))
    assert found.scores["ROUGE-L"] == pytest.approx(Rouge().compute_score(references, given)[0])
    bleu = Bleu(4).compute_score(references, given, verbose=0)[0]
    assert [found.scores[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx(bleu)


def test_the_package_itself_scores_true_captions_highest(monkeypatch):
    pytest.importorskip("pycocoevalcap.bleu.bleu", reason=captioning.INSTALL)
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)
    references = {i: [text] for i, text in enumerate(("a red circle top left", "a dog on a green field", "two cats"))}
    best = score_captions({i: texts[0] for i, texts in references.items()}, references)
    other = score_captions({i: references[(i + 1) % 3][0] for i in references}, references)
    assert best.scores["BLEU-4"] == pytest.approx(1, abs=1e-6) and best.scores["ROUGE-L"] == pytest.approx(1)
    assert best.scores.keys() == other.scores.keys() == {*METRICS} - {"METEOR", "SPICE"}
    assert all(best.scores[name] > other.scores[name] for name in best.scores)
