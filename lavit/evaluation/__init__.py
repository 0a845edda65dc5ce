"""How good tokens, captions, answers and images are: probes, statistics, the usual metrics, and chance beside each."""

from lavit.evaluation.captioning import CaptionScores, SceneCaptionReport, score_captions, score_scene_captions
from lavit.evaluation.data_folder import DataFolder, read_data
from lavit.evaluation.inception import Inception, load_inception
from lavit.evaluation.journal import Journal
from lavit.evaluation.perceptual import LPIPS, load_lpips, psnr, ssim
from lavit.evaluation.prompted import draw_prompts, generate_files
from lavit.evaluation.reconstruction import Judges, reconstruct_files
from lavit.evaluation.runner import Evaluated, Skipped, evaluate_items
from lavit.evaluation.tasks import (
    TaskReport,
    answer_folder,
    answer_scenes,
    caption_folder,
    caption_scenes,
    decoded_probe,
    edit_scenes,
    encode_images,
    generate_scenes,
)
from lavit.evaluation.text_to_image import ClipScorer, frechet_distance, rerank, score_generated_scenes
from lavit.evaluation.token_statistics import TokenStatistics, tokenize_and_decode, tokens_by_objects
from lavit.evaluation.vqa import SceneAnswerReport, VQAScore, evaluate_vqa, score_scene_answers, vqa_accuracy
from lavit.shapes.judge import Drawn, SceneReader
from lavit.shapes.probe import CellProbe, ProbeScore, chance, train_probe
from lavit.shapes.scores import SceneReport, SceneScore, score_scenes

__all__ = [
    "LPIPS",
    "CaptionScores",
    "CellProbe",
    "ClipScorer",
    "DataFolder",
    "Drawn",
    "Evaluated",
    "Inception",
    "Journal",
    "Judges",
    "ProbeScore",
    "SceneAnswerReport",
    "SceneCaptionReport",
    "SceneReader",
    "SceneReport",
    "SceneScore",
    "Skipped",
    "TaskReport",
    "TokenStatistics",
    "VQAScore",
    "answer_folder",
    "answer_scenes",
    "caption_folder",
    "caption_scenes",
    "chance",
    "decoded_probe",
    "draw_prompts",
    "edit_scenes",
    "encode_images",
    "evaluate_items",
    "evaluate_vqa",
    "frechet_distance",
    "generate_files",
    "generate_scenes",
    "load_inception",
    "load_lpips",
    "psnr",
    "read_data",
    "reconstruct_files",
    "rerank",
    "score_captions",
    "score_generated_scenes",
    "score_scene_answers",
    "score_scene_captions",
    "score_scenes",
    "ssim",
    "tokenize_and_decode",
    "tokens_by_objects",
    "train_probe",
    "vqa_accuracy",
]
