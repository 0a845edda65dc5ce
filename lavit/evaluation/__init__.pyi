import lavit.shapes.judge
import lavit.shapes.probe
import lavit.shapes.scores

from .captioning import CaptionScores as CaptionScores
from .captioning import SceneCaptionReport as SceneCaptionReport
from .captioning import score_captions as score_captions
from .captioning import score_scene_captions as score_scene_captions
from .code_patches import CodePatches as CodePatches
from .code_patches import collect_code_patches as collect_code_patches
from .data_folder import DataFolder as DataFolder
from .data_folder import read_data as read_data
from .examination import Examination as Examination
from .examination import Parts as Parts
from .examination import examine as examine
from .examination import read_pictures as read_pictures
from .inception import Inception as Inception
from .inception import load_inception as load_inception
from .journal import Journal as Journal
from .perceptual import LPIPS as LPIPS
from .perceptual import load_lpips as load_lpips
from .perceptual import psnr as psnr
from .perceptual import ssim as ssim
from .picture_content import edge_density as edge_density
from .picture_content import jpeg_size as jpeg_size
from .picture_content import rank_correlation as rank_correlation
from .prompted import draw_prompts as draw_prompts
from .prompted import generate_files as generate_files
from .reconstruction import Judges as Judges
from .reconstruction import reconstruct_files as reconstruct_files
from .runner import Evaluated as Evaluated
from .runner import Skipped as Skipped
from .runner import evaluate_items as evaluate_items
from .tasks import TaskReport as TaskReport
from .tasks import answer_folder as answer_folder
from .tasks import answer_scenes as answer_scenes
from .tasks import caption_folder as caption_folder
from .tasks import caption_scenes as caption_scenes
from .tasks import decoded_probe as decoded_probe
from .tasks import edit_scenes as edit_scenes
from .tasks import encode_images as encode_images
from .tasks import generate_scenes as generate_scenes
from .text_to_image import ClipScorer as ClipScorer
from .text_to_image import frechet_distance as frechet_distance
from .text_to_image import rerank as rerank
from .text_to_image import score_generated_scenes as score_generated_scenes
from .token_statistics import TokenStatistics as TokenStatistics
from .token_statistics import tokenize_and_decode as tokenize_and_decode
from .token_statistics import tokens_by_objects as tokens_by_objects
from .vqa import SceneAnswerReport as SceneAnswerReport
from .vqa import VQAScore as VQAScore
from .vqa import evaluate_vqa as evaluate_vqa
from .vqa import score_scene_answers as score_scene_answers
from .vqa import vqa_accuracy as vqa_accuracy

# The loader of this stub knows relative imports only.
Drawn = lavit.shapes.judge.Drawn
SceneReader = lavit.shapes.judge.SceneReader
CellProbe = lavit.shapes.probe.CellProbe
ProbeScore = lavit.shapes.probe.ProbeScore
chance = lavit.shapes.probe.chance
train_probe = lavit.shapes.probe.train_probe
SceneReport = lavit.shapes.scores.SceneReport
SceneScore = lavit.shapes.scores.SceneScore
score_scenes = lavit.shapes.scores.score_scenes
