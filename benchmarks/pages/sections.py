"""The rows of every benchmark as a table: its columns, their labels, and what the rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.pages.runs import describe_run, newest_of_sizes
from bif.benchmark import SETTINGS
from bif.benchmark.judge import choice_text, verdict


class Section(NamedTuple):
    """What the rows of a benchmark are, and their columns.

    Columns are `KEY` or `KEY=LABEL`, apart by ` | `.
    """

    about: str
    columns: str


_JUDGED = "reliability | rhat_max | verdict"
_SHORT = f"lds | ci_low | ci_high | chosen | {_JUDGED} | seconds"
_SCALING = (
    "shape | method | num_items | num_queries | how | layout=memory | "
    "seconds_a_draw=seconds a draw | target=target | tflops=TFLOP/s | share_of_bf16_peak | "
    "peak_memory_gib | forecast_gib | warm_up_seconds=warm-up | fit_seconds=fit | "
    "score_seconds=scores | seconds=seconds of an attribution | reason"
)
SOLVING = (
    "shape | method | num_items | num_queries | curvature_items=documents of the curvature | "
    "solver_steps=steps | largest_residual=residual | truncation | "
    "correlation_mean=correlation with a solve to .001 | seconds | peak_memory_gib | "
    "fit_seconds=fit, s | score_seconds=scores, s | reason"
)
"""Of the response by solving, and of rivals beside it."""
_HALF_WAY = (
    "kernel | level | half_way=half-way at step | half_way_low=95 % from | half_way_high=to | seeds"
)
_AGREEMENT = (
    "network | kernel | rank_correlation | rank_correlation_low=95 % from | "
    "rank_correlation_high=to | rank_correlation_p=p | rank_correlation_error=error of the chains |"
    " triplet_accuracy | item_rank_correlation=of items | item_triplet_accuracy=triplets of items |"
    " cophenetic_correlation | less_rank_correlation=loss kernel less it | "
    "less_rank_correlation_low=95 % from | less_rank_correlation_high=to | "
    "squared_less_rank_correlation=its squares less it | "
    "squared_less_rank_correlation_low=95 % from | squared_less_rank_correlation_high=to | seeds"
)
_FOUND = (
    "auroc=AUROC | auroc_low=95 % from | auroc_high=to | found=found at 5 % false alarms | seeds"
)
_GENERALISATION = (
    "temperature=nbeta, untempered = 1 | of | by | mean_test_loss=test loss | "
    "mean_prediction=predicted | off=off by | off_low=95 % from | off_high=to | "
    "relative=relative error | relative_low=95 % from | relative_high=to | "
    "rank_correlation=rank correlation | networks | seeds | trusted"
)
_RADIUS = (
    "part | target | level=R² of | method=prediction | nbeta=nbeta/n | damping=gamma/nbeta | "
    "trusted | radius_down=good to a loss of | radius_down_low=95 % from | radius_down_high=to | "
    "radius_up=to a gain of | radius_up_low=95 %, from | radius_up_high=to"
)
_SHIFTS = (
    "The size of a shift up to which the change of the test loss by retraining is predicted with "
    "an R² of .9, as weight that every item of a group loses or gains; 0 where it is at none. The "
    "seeds' noise is taken out. Parts: groups of the training, and groups from outside of it that "
    "are added. Settings were chosen on other queries; what was tried is in the file. In short: "
    "[docs/susceptibilities.md](../../docs/susceptibilities.md#how-far-it-predicts)."
)
_DURABILITY = (
    "pair | draws | seconds_memory=seconds, sums in memory | "
    "seconds_disk=seconds, traces on disk | overhead | overhead_error=± | "
    "overhead_to_scores=to the scores | overhead_without_setup=without set-up | "
    "traces_mib=traces, MiB"
)
_AVERAGES = (
    "set | nbeta/n | gamma/nbeta | solved_0_scratch=from scratch: solved at w* | "
    "solved_4_scratch=mean of 4 | solved_12_scratch=mean of 12 | ekfac_0_scratch=EK-FAC | "
    "ekfac_12_scratch=its mean of 12 | covariance_scratch=covariance | "
    "solved_0_checkpoint=from the checkpoint: solved at w* | "
    "solved_12_checkpoint=its mean of 12 | covariance_checkpoint=its covariance | draws | "
    "slope | solved_12_seconds=seconds of 12 | covariance_seconds=of the covariance"
)
PLANNED = (
    "problem | quantity | planned | measured | ratio=planned / measured | "
    "within_a_fifth=within 20 %"
)
"""Of runs beside their plans."""
LABELS = {
    "ci_high": "to", "ci_low": "95 % from", "ess_median": "effective draws",
    "forecast_gib": "forecast GiB", "lds": "LDS", "lds_loss": "LDS, loss",
    "lds_margin": "LDS, margin", "num_items": "items", "num_queries": "queries",
    "num_train": "items", "peak_memory_gib": "peak GiB", "rhat_max": "R-hat",
    "step_size": "step", "target": "retrained from", "verdict": "trusted",
}  # fmt: skip
"""Labels of keys that are not their own label with spaces."""
SECTIONS = {
    "small": Section(
        "LDS of the loss on twelve small sets by retraining on halves, the BIF given only the "
        "weight decay. In short: "
        "[docs/calibration-measured.md](../../docs/calibration-measured.md).",
        "set | num_train | train_loss | target | told | method | lds | ci_low | ci_high | "
        "minus_bif | minus_bif_low=95 % from | minus_bif_high=to | chosen | "
        f"{_JUDGED} | seconds",
    ),
    "small-solver": Section(
        "The same sets on another machine, with the response by solving beside them. In short: "
        "[docs/response.md](../../docs/response.md#how-well-it-predicts).",
        "set | target | told | method | lds | ci_low | ci_high | minus_bif | "
        f"minus_bif_low=95 % from | minus_bif_high=to | chosen | {_JUDGED} | seconds",
    ),
    "small-dampings": Section(
        "The same for the BIF alone, by the two yardsticks whose geometric mean the default "
        "damping is.",
        f"set | target | yardstick=gamma/nbeta | {_SHORT}",
    ),
    "small-temperatures": Section(
        "The same for the BIF alone, at several temperatures and the default damping.",
        f"set | target | times_n=nbeta/n | {_SHORT}",
    ),
    "draws": Section(
        "Draws a second on the Fashion-MNIST network, 6,000 items and 200 queries. FLOPs are "
        "counted as 6 a weight and item in steps and 2 in recording. Steps are timed: nothing is "
        "scored, so there is nothing to trust.",
        "sampler | how | chains | draws_per_second=draws/s | tflops=TFLOP/s | "
        "share_of_bf16_peak | peak_memory_gib | loss_error_rms=loss error, rms | "
        "loss_error_relative=relative | loss_error_max=largest | mean_loss | mean_loss_error=± | "
        "mean_loss_float32=in float32 | mean_loss_float32_error=±",
    ),
    "elsewhere": Section(
        "Problems retrained from the other place than where `retrained_from` got its widths: the "
        "defaults, and what either answer would give.",
        f"setting | target | told | lds | draws | ess_median | {_JUDGED} | seconds",
    ),
    "converged": Section(
        'Healthy and sick runs on the digits network of `bif demo`, for the docs page "Is my run '
        'converged?".',
        "run | trusted | failed=gates that failed | rhat_max | ess_median | reliability | "
        "drift_removed=detrending | drift_common=drift | chains_shared_variance=independence | "
        "virial | kinetic=temperature | step_share=step | heat=gradient noise | "
        "significant_share=certain signs | significant_share_null=with nothing to find",
    ),
    "coverage": Section(
        "95 % intervals by automatic settings where U is not quadratic, against exact answers: "
        "shares that hold the truth, with errors that cluster by run. Trusted is the share of a "
        "few runs of their own. Rows of 60 draws are of samplers without momentum.",
        "problem | nbeta asked | sampler | mass | nbeta | gamma | step_size | chains | draws | "
        "coverage | coverage_error=± | self_coverage=of self-influence | self_coverage_error=± | "
        "slope=slope on the truth | self_ratio=self-influence over the truth | rhat=R-hat | "
        "lost_chains=chains lost | trusted | failed=gates that failed | refused | "
        "no_reference=no reference, R-hat",
    ),
    "healthy": Section(
        "Problems with nothing wrong, with default settings: none may be refused.",
        "problem | items | weights | trusted | failed=gates that failed | rhat_max | "
        "reliability | ess_median | virial | mass | step_size | seconds",
    ),
    "remedies": Section(
        "Runs that fail a gate, and every alternative of its message followed to the letter, up "
        "to four times.",
        "gate | planted | remedy | works | times=after | last=the last of them | "
        "then fails=what fails then | mass before=mass | mass then=then",
    ),
    "mixing": Section(
        "The same posterior by different chains, each for as many seconds with its calibration; "
        "LDS by networks retrained on halves of the items.",
        "how=chains | effective_per_second=effective draws a second | ess_median | draws | "
        "reliability | rhat_max | lds_loss | lds_margin | verdict | seconds | failed=why not",
    ),
    "superposition": Section(
        "The toy of superposition: when influence of a feature's own items rises and peaks before "
        "its stage, as parts of the stage's step, and delays by half weight in a window before it, "
        "as logarithms of ratios of steps. `top` is the feature whose items influence says matter "
        "most, `rival` the other one whose items it says harm most; beyond is beside the other "
        "features. Intervals are over seeds. In short: "
        "[docs/stages.md](../../docs/stages.md#the-superposition-toy).",
        "figure | way | asked=of | mean | ci_low | ci_high",
    ),
    **{f"shifts-{name}": Section(_SHIFTS, _RADIUS) for name in ("digits", "fashion", "text")},
    "tuning": Section(
        "nbeta and gamma by the defaults, by what networks are retrained from, by `bif.tune` with "
        "its retraining and pilots in the seconds, and as they were best in the sweep.",
        "budget=seconds | name=calibrated by | nbeta/n | lds_loss | lds_margin | lds=LDS, mean | "
        f"draws | ess_median | {_JUDGED}",
    ),
    "sweep": Section(
        "Calibration beside the best of a sweep at the same wall-clock; the best is chosen by "
        "what is reported, so it is flattered.",
        "name=how | lds | share_of_best=share of the best | sampler | step | nbeta/n | "
        f"damping=gamma/own | ess_median | {_JUDGED} | seconds",
    ),
    "induction": Section(
        "Influence of repeated sequences while a small language model learns induction: moments "
        "over seeds, settings against leaving halves out of a window of the training (LDS), and "
        "repeated sequences counted twice within windows. Curves of every seed are in the file. In "
        "short: [docs/stages.md](../../docs/stages.md#induction-in-a-language-model).",
        "part | what | figure | mean | ci_low | ci_high | seeds",
    ),
    "scaling": Section(
        "Cost of a draw of SGLD against model size, GPT-NeoX with random weights, 144 sequences "
        "of 512 tokens scored at every draw and a step on 16 between draws. In words and "
        "pictures: [docs/scaling.md](../../docs/scaling.md).",
        _SCALING,
    ),
    "scaling-items": Section("The same against items and queries.", _SCALING),
    "scaling-1b": Section("EK-FAC at 1B beside the BIF, on another card.", _SCALING),
    "scaling-response": Section("The response by solving beside EK-FAC.", SOLVING),
    "anchored": Section(
        "Root mean square errors of scores, in units of the scores, by draws alone, by a linear "
        "solve alone and by both, against a run with eight times the draws; what anchors leave to "
        "the draws, and what a draw is worth then.",
        "set | nbeta/n | gamma/nbeta | covariance_error=draws alone | response_error=solve alone | "
        "anchored_error=both | variance_left=left to sample | worth=a draw's worth | kappa | "
        "reference_trusted=reference trusted | anchored_trusted=trusted",
    ),
    "averages": Section(
        "Damped influence solved at w*, averaged over a few draws of the posterior, and the "
        "covariance of all draws of a run, by networks retrained on halves of the items: LDS of "
        "the loss. In short: [docs/estimators.md](../../docs/estimators.md#averages).",
        _AVERAGES,
    ),
    "averages-concrete": Section("The same for the network of `bif lds concrete`.", _AVERAGES),
    "ablation": Section(
        "The BIF on digits with one setting at a time off its default, given the weight decay. "
        "In short: [docs/calibration-measured.md](../../docs/calibration-measured.md#ablation).",
        "varied | factor | nbeta/n | gamma/nbeta | step_size | lds_scratch=LDS, scratch | "
        "lds_checkpoint=LDS, checkpoint | ess_median | reliability | rhat_max | verdict | failed",
    ),
    "durability-demo": Section(
        "What it costs that nothing is lost, `bif demo`: the run on disk with all traces, beside "
        "the same with sums in memory; overheads as shares of the latter.",
        _DURABILITY,
    ),
    "durability-fashion": Section(
        "The same for BAOAB on the Fashion-MNIST network, 6,000 items and 200 queries.",
        _DURABILITY,
    ),
    "kernel-fashion": Section(
        "Agreement of kernels of 10,000 test images with the tree of tops, bottoms, shoes and "
        "bags, seeds of training. In short: [docs/kernel-images.md](../../docs/kernel-images.md).",
        _AGREEMENT,
    ),
    "kernel-fashion-small": Section(
        "The same of 1,500 test images and train items, at a damping at which chains mix.",
        _AGREEMENT,
    ),
    "kernel-cifar": Section(
        "The same of 4,000 images with WordNet's tree: seeds of the sampler around a published "
        "ResNet-20, and of the training of a ResNet-9.",
        _AGREEMENT,
    ),
    "kernel-checkpoints": Section(
        "The step of training at which the separation of each level of the tree, mean correlation "
        "within groups less across, has gone half of its way; curves are in the file.",
        _HALF_WAY,
    ),
    "kernel-mislabel-fashion": Section(
        "Items with a wrong label, found by kernels, losses and cleanlab.",
        f"share | score | {_FOUND}",
    ),
    "kernel-mislabel-cifar": Section("The same of CIFAR-10.", f"share | score | {_FOUND}"),
    "kernel-backdoor-fashion": Section(
        "Items with a patch and a wrong label, found by their mean similarity with ten known ones.",
        f"among | score=by | {_FOUND}",
    ),
    "kernel-backdoor-cifar": Section("The same of CIFAR-10.", f"among | score=by | {_FOUND}"),
    "kernel-backdoor-cifar-long": Section(
        "The same at a tenth of the damping, by longer chains on mini-batches.",
        f"among | score=by | {_FOUND}",
    ),
    "kernel-hierarchy": Section(
        "The loss kernel of the hierarchical toy over its training: where the separation of a "
        "level is largest and where it turns negative, beside the step at which the split is "
        "learned.",
        "kernel | level | peak_step=peak at step | peak_step_low=from | peak_step_high=to | "
        "flip_step=negative at step | flip_step_low=from | flip_step_high=to | "
        "branching_step=learned at step | seeds | trusted | checkpoints",
    ),
    "kernel-maps": Section(
        "Neighbours on the maps of the first seeds: of an item's own label, by each similarity, "
        "and kept between halves of the chains and by another seed of UMAP.",
        "network | figure | value",
    ),
    "kernel-maps-cifar": Section(
        "The same of the first seeds of CIFAR-10.", "network | figure | value"
    ),
    "generalisation-digits": Section(
        "Test loss predicted from the draws on the train items alone, beside held-out items: at "
        "w*, in the mean over draws, and of the averaged likelihood, whose `first` is WAIC and "
        "whose `importance` PSIS-LOO. Five networks of several sizes and weight decays; ranks are "
        "within a seed. `default` has calibration's gamma. In short: "
        "[docs/susceptibilities.md](../../docs/susceptibilities.md#test-loss-from-training-draws).",
        _GENERALISATION,
    ),
    "generalisation-letters": Section("The same of letters of Shakespeare.", _GENERALISATION),
    "generalisation-fashion": Section("The same of Fashion-MNIST.", _GENERALISATION),
    "spectroscopy": Section(
        "Clusters of tokens by susceptibilities of heads and MLPs of stories260K: between halves "
        "of the chains, beside nulls (shuffled contexts, a normal cloud of the same covariance, "
        "noise of the chains), with the token itself, and over seeds of the sampler; then with "
        "the mean of each token taken off. Agreement is the adjusted Rand index. No run behind it "
        "passes all its gates. In short: "
        "[docs/susceptibilities.md](../../docs/susceptibilities.md#clusters-of-contexts).",
        "what | seed | contexts | count=clusters | agreement | "
        "agreement_by_chance=by chance, 97.5 % | separation | shuffled | cloud | noise | "
        "above_nulls | directions | token_agreement=with the token | "
        "token_chance=by chance, 97.5 % | correlation_of_matrices=correlation of matrices",
    ),
    "checkpoints": Section(
        "Influence over 50 checkpoints of a network that learns digits, in one process; "
        "then killed at random moments and continued, the same to the last bit or not.",
        "checkpoints | items | queries | weights | seconds | peak_gib=peak GiB | kills | "
        "same_bits=same bits | trusted",
    ),
    "kernel-noise": Section(
        "Correlations of 1,000 items from a few draws, against the true ones of losses linear in "
        "Gaussian weights: root mean square error, and the share of the true 15 nearest that are "
        "found. Intervals are over seeds. In short: [docs/kernel.md](../../docs/kernel.md#noise).",
        "spectrum | draws | kernel | error | error_low=from | error_high=to | "
        "neighbours | neighbours_low=from | neighbours_high=to | seeds",
    ),
    "kernel-digits": Section(
        "The loss kernel of 1,000 digits: neighbours by four chains against those of twelve "
        "others, AUROC of scores of flipped labels and other shares, and the linear part. "
        "Intervals are over seeds; trusted is how many of the seeds' runs are. In short: "
        "[docs/kernel.md](../../docs/kernel.md#suspects).",
        "setting | figure | mean | ci_low | ci_high | seeds | trusted",
    ),
    "kernel-size": Section(
        "Neighbours, map and all figures of many items from traces on disk, each way in a process "
        "of its own.",
        "items | draws | way | recall | read=reading, s | neighbours=neighbours, s | map=map, s | "
        "seconds | peak_gib=peak GiB",
    ),
    "plans": Section(
        "What runs of a live module took beside what was forecast. On a CPU seconds are those of "
        "its time. In short: "
        "[docs/distributed.md](../../docs/distributed.md#plan-and-measurement).",
        PLANNED,
    ),
}


def sections(name: str, *, on_its_page: bool = False) -> list[str]:
    """Return the newest runs of a benchmark, of every setting and size, as headings and tables.

    Args:
        name: A name in `SECTIONS`.
        on_its_page: Whether headings leave the benchmark out and say what the settings are.
    """
    files = [f"{name}-{s}" for s in SETTINGS] if name in ("mixing", "tuning", "sweep") else [name]
    about, columns = SECTIONS[name]
    lines = []
    for run in (run for file in files for run in newest_of_sizes(file)):
        title = run["benchmark"].removeprefix(f"{name}-" if on_its_page else "")
        setting = [run["about"], ""] if on_its_page else []
        lines += ["", f"## {title}, {run['date']}", "", *setting, about, "", describe_run(run), ""]
        lines += rows_as_table(run["rows"], columns)
    return lines


def rows_as_table(rows: Sequence[Mapping[str, Any]], columns: str) -> list[str]:
    """Return rows as a table, of the columns those that any row has."""
    rows = [add_words(row) for row in rows]
    named = {key: label for key, _, label in (c.partition("=") for c in columns.split(" | "))}
    keys = [key for key in named if any(cell(row.get(key)) not in ("–", "") for row in rows)]
    labels = [named[key] or LABELS.get(key, key.replace("_", " ")) for key in keys]
    return table(labels, [[cell(row.get(key)) or "–" for key in keys] for row in rows])


def add_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with what its table says of its run and its choice."""
    found = {**row, "verdict": verdict(row)}
    if "choice" in row:
        found["chosen"] = choice_text(row["choice"], row.get("at_edge", ()))
    return found


def table(labels: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return cells as a table."""
    lines = [[text.replace("|", "\\|") for text in row] for row in (labels, *rows)]
    lines.insert(1, ["---"] * len(labels))
    return [f"| {' | '.join(line)} |" for line in lines]


def cell(value: Any) -> str:
    """Return a value as a table has it."""
    if value is None or value != value:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
