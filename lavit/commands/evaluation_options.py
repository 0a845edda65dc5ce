"""The options of ``lavit evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavit.commands.options import add_encoder, add_machine, check_at_least, command_parser
from lavit.evaluation.protocol import PROMPTS, SAMPLES
from lavit.shapes.world import SHAPES_WORLD

SCENE_TASKS = ("caption", "vqa", "generate", "edit")
TASKS = (*SCENE_TASKS, "reconstruct")
DRAWN = ("generate", "edit")  # as image tokens
PIXELS = ("generate", "reconstruct")  # of a folder
PROBE_SCENES, SHEET_ITEMS = 4096, 12

DESCRIPTION = """Judge a model: its captions, its answers, the images it draws, and what its tokens keep of an image.

--data shapes: scenes of the built-in world that no training has seen. Captions by what they say is where, answers by
kind of question, images drawn for captions (generate) and for a scene with words that ask for one change of it (edit)
by the objects that a probe reads from their decoded tokens; all beside what guessing scores, of an edit guessing that
looks at the scene and does not read the words.
--data FOLDER: images/, and captions.json, questions.json and answers.json as the data sets publish them (COCO,
Karpathy, NoCaps, Flickr30k; VQAv2, OK-VQA, VizWiz), there or by options of their own.
  caption      exact matches and token F1, beside what one caption for all images scores; CIDEr and the other metrics
               of COCO captions, as far as pycocoevalcap and Java are installed
  vqa          the standard accuracy, by types of answer and question, beside what one answer for all scores; VizWiz is
               first asked whether the question can be answered, as in the release
  generate     images for captions, the best of several by CLIP; FID and CLIP score
  reconstruct  images to tokens and back: rFID, PSNR, SSIM, LPIPS, CLIP similarity, codes used, tokens an image
Without --task: caption and vqa, whichever there is; of images alone, reconstruct."""

EPILOG = """Networks of metrics are files that you have, or that others have left where torch's hub and Hugging Face
keep theirs; nothing is downloaded. Where one is absent, its metric is left out, and the line that says so names the
file and the option.
--output: "tasks", for each "score", "settings", "results" (an entry for each item, in the form of COCO's and VQAv2's
result files), "item_scores" (more is better) and "skipped" (name and reason of each item left out); and "left_out",
tasks that the model cannot do, and what the folder's files have that cannot be used.
While it works, FILE.progress keeps what is done: the same command again goes on there. Images drawn stay in
FILE.pictures.
Under torchrun all processes share the work: torchrun --nproc-per-node 8 -m lavit.cli evaluate --model DIR --data FOLDER
An item that cannot be used is named and left out. Exit code 0; 1 if some were left out; 2 on an error, or if all were.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; ValueError naming one that is missing or out of range."""
    parser = command_parser("evaluate", DESCRIPTION, EPILOG)
    parser.usage = "lavit evaluate --model DIR --data D [--task T] [--output F] [--sheet F] [options below]"
    add = parser.add_argument
    add("--model", metavar="DIR", help="folder of a model, as `lavit train language` writes it")
    add("--data", metavar="D", help="shapes, or a folder of images with captions and questions")
    add("--task", action="append", choices=TASKS, help="what to judge, once or more")
    add("--output", metavar="F", help="write figures and all results to this file (JSON); - for the standard output")
    add("--sheet", metavar="F", help="draw the worst and the best items of a folder to this picture")
    add("--sheet-items", type=int, default=SHEET_ITEMS, metavar="N", help=f"of each kind [{SHEET_ITEMS}]")
    add("--restart", action="store_true", help="forget what an interrupted run of this --output has done")
    add("--limit", type=int, metavar="N", help="at most N images (vqa of a folder: questions); scenes: [256]")
    add("--seed", type=int, default=0, metavar="S", help="of the scenes, the prompts and the images drawn [0]")
    add_machine(parser, 32, "items at a time on each process")
    add_encoder(parser)

    add = parser.add_argument_group("files of the folder, where they are not those above").add_argument
    add("--images", metavar="DIR", help="the image files [FOLDER/images, or FOLDER itself]")
    add("--captions", metavar="F", help=".json, or Flickr30k's .token or .csv [FOLDER/captions.json]")
    add("--questions", metavar="F", help="of VizWiz with the answers in it [FOLDER/questions.json]")
    add("--answers", metavar="F", help="without them, answers are only written [FOLDER/answers.json]")
    add("--split", metavar="S", help="of Karpathy's captions: train, restval, val or test; else all")

    add = parser.add_argument_group("captions and answers; else as the model says, or the release").add_argument
    add("--beams", type=int, metavar="N", help="of the search; the release: 2 for captions and 5 for answers")
    add("--min-new", type=int, metavar="N", help="fewest tokens of a text; the release: 8 and 2 (of scenes 1)")
    add("--max-new", type=int, metavar="N", help="most tokens of a text; the release: 36 and 10")
    add("--lemmatize", action="store_true", help="answers of a folder, and people's, by spaCy's lemmas as the release")

    add = parser.add_argument_group("images drawn").add_argument
    add("--guidance", type=float, metavar="G", help="of the tokens; of a folder [2]; else the model's own, or 4 and 5")
    add("--top-k", type=int, metavar="K", help="likeliest codes; of a folder [200]; else the model's own, or 50")
    add("--prompts", type=int, metavar="N", help=f"captions, drawn by the seed [{PROMPTS}, or one of each image]")
    add("--samples", type=int, default=SAMPLES, metavar="N", help=f"of a prompt, the best by CLIP counts [{SAMPLES}]")
    add("--pixels", metavar="DIR", help="folder of a pixel pipeline; else `pixels` in --model")
    add("--steps", type=int, metavar="N", help="of denoising; else the pipeline's own")
    add("--pixel-guidance", type=float, metavar="G", help="of the pixels by the tokens; else the pipeline's own")
    add("--probe-scenes", type=int, default=PROBE_SCENES, metavar="N", help=f"the probe learns from [{PROBE_SCENES}]")

    add = parser.add_argument_group("networks of metrics").add_argument
    add("--inception", metavar="F", help="of FID: torch-fidelity's weights, .pth or .safetensors; else torch's hub")
    add("--resize", choices=("tensorflow", "clean"), default="tensorflow", help="to Inception's size [tensorflow]")
    add("--statistics", metavar="F", help="of the true images (.npz): read if it is there, else written")
    add("--clip", metavar="DIR", help="a CLIP model; else ViT-L/14 in Hugging Face's cache")
    add("--alexnet", metavar="F", help="of LPIPS: torchvision's weights; else torch's hub")
    add("--lpips", metavar="F", help="of LPIPS: its own, alex.pth; else torch's hub, or the package lpips's")
    options = parser.parse_args(argv)
    if options.model is None and options.task == ["reconstruct"]:
        options.model = options.pixels  # nothing else is needed
    for name in ("model", "data"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is needed; `lavit evaluate --help` tells what it is")
    check_at_least(options, limit=1, batch_size=1, probe_scenes=1, prompts=1, samples=1, steps=1, sheet_items=1)
    check_at_least(options, pixel_guidance=0)
    if options.data != SHAPES_WORLD:
        check_at_least(options, seed=0)
    else:
        if options.split is not None:
            raise ValueError(f"--split: the shapes world has none, got {options.split}")
        for name in ("images", "captions", "questions", "answers", "sheet"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: is of a folder, not of the shapes world")
    return options
