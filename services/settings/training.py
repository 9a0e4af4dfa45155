"""Settings of training, of evaluation and of what they leave: `[sampling]` to `[records]`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from services.schemas.common import MAX_KEPT_TOKENS
from services.settings.deepspeed_json import zero_fields
from services.settings.section import LocalPath, Section, expanded

LossName = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"]


class SamplingSettings(Section):
    """How training samples. The loss scores with the same distribution, or ratios were biased."""

    temperature: float = Field(default=1.0, gt=0, le=2)
    """Divides the logits, in sampling and in the loss alike."""
    max_tokens: int = Field(default=1024, ge=1)
    """Length at which a completion is cut."""
    top_k: int = Field(default=0, ge=0)
    """Most probable tokens that are sampled from, and scored over, 1 to 20; 0 keeps the whole
    vocabulary. The sampler says which they were (`docs/training.md`)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """With `top_k`: of those, the likeliest that have this probability together."""
    constrain: bool = False
    """Sample nothing but answers of the run's task and notation, tags and thinking included, by a
    grammar; the trainer replays the same masks (`docs/training.md`)."""

    @property
    def renormalises(self) -> bool:
        """Whether tokens come from a part of the vocabulary."""
        return self.constrain or self.top_k > 0

    @model_validator(mode="after")
    def _told(self) -> "SamplingSettings":
        if self.top_k > MAX_KEPT_TOKENS:
            raise ValueError(
                f"top_k = {self.top_k}: the loss needs the tokens that were drawn from, and vLLM "
                f"tells {MAX_KEPT_TOKENS} at most; set {MAX_KEPT_TOKENS} or fewer, or 0 for all"
            )
        if self.top_p < 1 and not self.top_k:
            raise ValueError(
                f"top_p = {self.top_p:g} without top_k: the loss needs the tokens that were drawn "
                f"from, and those of top_p alone can be any number, while vLLM tells "
                f"{MAX_KEPT_TOKENS} at most; set top_k = {MAX_KEPT_TOKENS} beside it, or top_p = 1"
            )
        return self


class AlgorithmSettings(Section):
    """What is learnt from a group. `docs/training.md` has formulas and papers."""

    loss: LossName = "grpo"
    """bnpo is dapo here: what sets it apart in TRL is that it depends on how a step is cut."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Ratios under 1 - clip_low give no gradient where they would be pushed further down; cispo
    has no such bound."""
    clip_high: float = Field(default=0.2, gt=0)
    """DAPO's clip-higher is 0.28; cispo caps its weight at 1 + clip_high; gspo's are near 4e-4."""
    delta: float | None = Field(default=None, gt=1)
    """Ratios over delta give no gradient where the advantage is negative: without this bound one
    token can outweigh a step (dual clip). Over 1 + clip_high; verl's is 3."""
    sapo_temperature_pos: float = Field(default=1.0, gt=0)
    """How quickly sapo's gradient fades as a ratio leaves 1, where the advantage is positive."""
    sapo_temperature_neg: float = Field(default=1.05, gt=0)
    """The same where it is not."""
    num_iterations: int = Field(default=1, ge=1)
    """Times that a step trains on each of its mini-batches."""
    num_mini_batches: int = Field(default=1, ge=1)
    """Parts of a step's groups, each with an update of its own."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference: the start model, or the policy with its adapter off."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Whose standard deviation divides the advantages. Dr. GRPO wants none, GDPO batch."""
    normalise: Literal["total", "terms"] = "total"
    """Compare total rewards within a group, or each term by itself and add the results with the
    rubric's weights (GDPO)."""
    credit: Literal["answer", "element"] = "answer"
    """Whether all tokens of a completion get its reward, or each the reward that is still to come
    after the objects and triplets that were written before it."""
    credit_lambda: float = Field(default=1.0, ge=0, le=1)
    """With `credit = "element"`: below 1, what an element is given for later ones fades by this
    factor an element; less variance, and a bias."""
    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    """The ratio's denominator: what the sampler drew with, which corrects for lag and mismatch in
    the ratio itself; or the trainer's own before the step's first update, with `correction` for the
    rest."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """How trainer against sampler is corrected, with `old_logprobs = "trainer"`: tokens are weighed
    by min(ratio, cap), or dropped over the cap."""
    correction_level: Literal["token", "sequence"] = "token"
    """Whether each token has a ratio of its own, or a completion one."""
    correction_cap: float = Field(default=2.0, gt=1)
    """The cap on these ratios."""
    mask_truncated: bool = False
    """Completions cut at `sampling.max_tokens` give no gradient (DAPO, overlong filtering)."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `sampling.max_tokens` over which `overlong_penalty` grows from zero."""
    overlong_penalty: float = Field(default=0.0, ge=0)
    """Taken from the total reward of a completion of full length (DAPO, soft overlong
    punishment)."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal: they teach nothing (DAPO)."""
    max_replaced: int = Field(default=0, ge=0)
    """Groups that one step may replace, then it takes what there is; 0: three times its groups."""

    @model_validator(mode="after")
    def _consistent(self) -> "AlgorithmSettings":
        if self.correction != "none" and self.old_logprobs != "trainer":
            raise ValueError(
                f"correction = '{self.correction}' needs old_logprobs = 'trainer': with 'sampler' "
                "the ratio already corrects"
            )
        if self.delta is not None and self.loss in ("cispo", "sapo"):
            raise ValueError(f"delta has no effect with loss = '{self.loss}': leave it out")
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ValueError(
                f"delta ({self.delta:g}) must be over 1 + clip_high ({1 + self.clip_high:g})"
            )
        if bool(self.overlong_buffer) != bool(self.overlong_penalty):
            raise ValueError("overlong_buffer and overlong_penalty go together: set both or none")
        if self.credit == "element" and self.loss == "gspo":
            raise ValueError(
                "credit = 'element' needs a ratio for each token, and loss = 'gspo' has one for a "
                "completion: take another loss"
            )
        if self.credit == "element" and self.normalise == "terms":
            raise ValueError(
                "credit = 'element' is of the total reward: leave out normalise = 'terms'"
            )
        if self.credit_lambda != 1 and self.credit != "element":
            raise ValueError(f"credit_lambda = {self.credit_lambda:g} needs credit = 'element'")
        if self.max_replaced and not self.dynamic_sampling:
            raise ValueError(f"max_replaced = {self.max_replaced} needs dynamic_sampling = true")
        return self


class TrainerSettings(Section):
    """GRPO on DeepSpeed."""

    num_steps: int | None = Field(default=None, ge=1)
    """Without it, as many as `num_epochs` takes."""
    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training set."""
    groups_per_step: int = Field(default=32, ge=1)
    """Prompts of one step, over all ranks."""
    group_size: int = Field(default=8, ge=2)
    """Completions of one prompt."""
    max_policy_lag: int = Field(default=1, ge=0)
    """Versions that groups are behind the trainer on average, at most: sampling runs so many steps
    ahead. 0 makes the loop synchronous."""
    max_token_lag: int = Field(default=0, ge=0)
    """Versions that any token may be behind: a step waits for a group that the next one could not
    use. 0: twice max_policy_lag."""
    num_ranks: int = Field(default=1, ge=1)
    """Processes of the trainer: `sgg-rl train` starts them on this machine, torchrun or srun on
    several."""
    tokens_per_micro_batch: int = Field(default=16384, ge=1)
    """Tokens of one forward and backward pass on one rank."""
    learning_rate: float = Field(default=6e-7, gt=0)
    """AdamW's, at the end of the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Over these the learning rate rises linearly."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After them it stays, or falls to zero after the last step."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the gradients' mean and of their square's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """A longer gradient is scaled down to this norm."""
    freeze_vision_tower: bool = False
    """Leave the image encoder as it is in `model.path`."""
    freeze_projector: bool = False
    """Leave what maps the tower's features to the language model's as it is in `model.path`."""
    freeze_language_model: bool = False
    """Leave it as it is in `model.path`, where only what the image passes is trained."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    logprob_chunk: int = Field(default=1024, ge=1)
    """Tokens whose logits over the vocabulary exist at the same time."""
    float32_head: bool = False
    """Compute with float32 copies of the output layer and its states, so that their gradients are
    not rounded on the way either (TRL's `cast_lm_head_to_fp32`). Nothing changes in float32."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The latest ones stay; older ones are removed."""
    wait_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for rollouts, servers or Redis before the trainer gives up and says what was
    missing. A rank that gives no sign of life for that long, or keeps the others waiting for twice
    as long, is named and ends the run."""
    max_dead_groups: int = Field(default=0, ge=0)
    """Groups that may die between two steps (unreadable images, poisoned prompts) before the run
    ends; 0: four times groups_per_step. A row with broken annotations does not count."""

    @property
    def oldest_token_lag(self) -> int:
        """Versions that no token of a batch may be behind by more than."""
        return self.max_token_lag or 2 * self.max_policy_lag

    @property
    def max_open_groups(self) -> int:
        """Groups that are open at a time, from being asked for until their step is published."""
        return (self.max_policy_lag + 1) * self.groups_per_step

    def total_steps(self, num_rows: int) -> int:
        """Steps of a run on a training set of so many usable rows."""
        if self.num_steps is not None:
            return self.num_steps
        return max(1, int(self.num_epochs * num_rows / self.groups_per_step))

    @property
    def vision_trained(self) -> bool:
        """Whether any weight that an image passes before the language model is trained."""
        return not (self.freeze_vision_tower and self.freeze_projector)

    @property
    def partly_frozen(self) -> bool:
        """Whether some weights stay those of `model.path`."""
        return self.freeze_vision_tower or self.freeze_projector or self.freeze_language_model

    @model_validator(mode="after")
    def _consistent(self) -> "TrainerSettings":
        if self.groups_per_step % self.num_ranks:
            raise ValueError(
                f"groups_per_step ({self.groups_per_step}) must be a multiple of num_ranks "
                f"({self.num_ranks})"
            )
        if self.oldest_token_lag < self.max_policy_lag:
            raise ValueError(
                f"max_token_lag ({self.max_token_lag}) must be at least max_policy_lag "
                f"({self.max_policy_lag}), or 0 for twice that"
            )
        if self.max_token_lag and not self.max_policy_lag:
            raise ValueError(
                f"max_token_lag = {self.max_token_lag} needs max_policy_lag of at least 1: with 0 "
                "no token is behind"
            )
        if self.freeze_vision_tower and self.freeze_projector and self.freeze_language_model:
            raise ValueError("everything is frozen: leave one of the three freeze_* flags false")
        return self


class DeepSpeedSettings(Section):
    """How the trainer's memory is shared out."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """Where it is not set, `config_file` decides; so for both offloads."""
    offload_optimizer: bool = False
    """Optimizer state in the host's memory."""
    offload_parameters: bool = False
    """Parameters too; stage 3 only."""
    export_bucket_gib: float = Field(default=0.5, gt=0)
    """Stage 3 gathers so much of the parameters at a time for a weight update."""
    config_file: LocalPath | None = None
    """DeepSpeed's own JSON, over what these settings generate. Batch sizes and precision stay the
    trainer's; `"auto"` leaves a value to it."""

    @model_validator(mode="before")
    @classmethod
    def _of_own_file(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping) or not fields.get("config_file"):
            return fields
        return zero_fields(Path(expanded(str(fields["config_file"])))) | dict(fields)

    @model_validator(mode="after")
    def _consistent(self) -> "DeepSpeedSettings":
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage = 3")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage of at least 1")
        return self


class LoraSettings(Section):
    """A low-rank adapter in place of all weights."""

    rank: int = Field(default=0, ge=0)
    """0 trains all weights that are not frozen."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """SFT only: in GRPO the trainer must score with what the sampler sampled with."""
    target_modules: str | list[str] = (
        r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|in_proj_qkv|in_proj_z|out_proj"
        r"|gate_proj|up_proj|down_proj)"
    )
    """Names, or a regular expression of whole module names. The middle three are of recurrent
    layers (Qwen3.5)."""


class SftSettings(Section):
    """Supervised fine-tuning, before GRPO."""

    num_steps: int | None = Field(default=None, ge=1)
    """Without it, as many as `num_epochs` takes."""
    num_epochs: float = Field(default=3.0, gt=0)
    """Passes over the training set."""
    batch_size: int = Field(default=32, ge=1)
    """Answers of one optimizer step, over all ranks."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Answers of one forward and backward pass on one rank."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """At the end of the warm-up; then a cosine takes it to 0."""
    warmup_steps: int = Field(default=30, ge=0)
    """Over these the learning rate rises linearly."""
    shuffle_graph: bool = False
    """Write an answer's objects and relationships in another order each epoch, by the seed."""
    thinking_column: str = "thinking"
    """Column of the dataset with the text inside `<think>`; read where `data.thinking` is on."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints, for `--resume`."""

    @model_validator(mode="after")
    def _divisible(self) -> "SftSettings":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must divide "
                f"batch_size ({self.batch_size})"
            )
        return self

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps on a training set of so many usable rows."""
        if self.num_steps is not None:
            return self.num_steps
        return math.ceil(self.num_epochs * math.ceil(num_rows / self.batch_size))


class EvaluationSettings(Section):
    """How answers are sampled outside training: `sgg-rl infer`, and held-out images of a run."""

    num_images: int = Field(default=64, ge=1)
    """Held-out images that a run is evaluated on: the first of them."""
    every: int = Field(default=0, ge=0)
    """Steps between evaluations while a run trains; 0: only before and after it, where there is
    `data.heldout`."""
    max_tokens: int = Field(default=1024, ge=1)
    """Length at which an answer is cut."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 is greedy. Otherwise each image has a seed of its own, made from `run.seed` and its id."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together; 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """0 keeps the whole vocabulary."""
    best_of: int = Field(default=1, ge=1, le=64)
    """Answers that are sampled for each image. The one with a graph and the highest mean
    log-probability of its tokens is kept."""
    consensus: int = Field(default=1, ge=1, le=64)
    """Answers that are sampled for each image and made into one graph: of what at least half of
    them have, with that share as its score."""
    scores: bool = False
    """Give objects and relationships the probability of their tokens as a score, which
    `sgg-rl evaluate` ranks by."""
    constrain: Literal["never", "failures", "all"] = "never"
    """Ask again under the grammar of an answer: where the free answer has no graph, or for every
    image. The free answer always comes first, and its status is kept."""

    @property
    def num_answers(self) -> int:
        """That are sampled for each image."""
        return max(self.best_of, self.consensus)

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationSettings":
        if self.num_answers > 1 and not self.temperature:
            name = "best_of" if self.best_of > 1 else "consensus"
            raise ValueError(
                f"{name} = {self.num_answers} needs a temperature over 0, such as 0.7: greedy "
                "answers are all alike"
            )
        if self.consensus > 1 and self.best_of > 1:
            raise ValueError("best_of keeps one answer, consensus makes one of all: set one")
        if self.consensus > 1 and self.scores:
            raise ValueError("the scores of a consensus are shares of its answers: unset scores")
        return self


class RecordsSettings(Section):
    """Where a run's numbers go beside `metrics.jsonl`."""

    tensorboard: bool = False
    """Event files in the run's folder: `tensorboard --logdir runs`."""
    wandb: bool = False
    """Weights & Biases; `WANDB_MODE=offline` keeps it on this machine."""
    trackio: bool = False
    """Trackio, on this machine: `trackio show`."""
    wandb_project: str = "sgg-rl"
    """The project of W&B and of Trackio that runs are shown in."""
    answers: int = Field(default=2, ge=0, le=64)
    """Answers a step that trackers show in a table, drawn beside the annotated graphs: the first
    one of each of so many groups. About 0.1 MB each; 0 shows none."""
    keep_rollouts: int = Field(default=100, ge=0)
    """Committed steps whose `rollouts/` files stay; 0 keeps all."""
