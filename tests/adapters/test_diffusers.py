"""Models of diffusers as velocities, and back, against the package's own samplers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from adapters.exact import MIXTURE, Exact, ExactFlow, gap, noise, run, seeded
from torch import Tensor, nn

from flowbook.adapters import from_diffusers, scheduler_grid, to_diffusers
from flowbook.analytic import GaussianMixture
from flowbook.cnf import log_prob
from flowbook.diffusion import ProbabilityFlow
from flowbook.guidance import guided
from flowbook.inversion import edit, invert, round_trip
from flowbook.paths import LinearPath, change_path, path_of
from flowbook.reflow import distill, generate_pairs, rectify
from flowbook.solvers import sample
from flowbook.training import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:the schedule's last step keeps")

DDIM: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
VP = [
    pytest.param(betas, prediction, ends, id=f"{betas}, {prediction}{', pure noise' if ends else ''}")
    for betas in ("linear", "scaled_linear")
    for ends in (False, True)
    for prediction in ("epsilon", "sample", "v_prediction")
    if not (ends and prediction == "epsilon")
]


def ddim(betas: str = "linear", prediction: str = "epsilon", ends: bool = False) -> Any:
    return diffusers.DDIMScheduler(beta_schedule=betas, prediction_type=prediction, rescale_betas_zero_snr=ends, **DDIM)


def marginal(velocity: ProbabilityFlow) -> GaussianMixture:
    """The data with the noise of the first training step, which is left at t = 1."""
    alpha, sigma = velocity.path.alpha(1.0), velocity.path.sigma(1.0)
    stds = torch.sqrt((alpha * MIXTURE.stds) ** 2 + sigma**2)
    return GaussianMixture(alpha * MIXTURE.means, stds, MIXTURE.weights)


# The exact model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("betas", "prediction", "ends"), VP)
def test_ddim_approaches_the_flow_as_one_over_its_steps(betas: str, prediction: str, ends: bool) -> None:
    scheduler, x0 = ddim(betas, prediction, ends), noise(500)
    model = Exact(scheduler)
    flow = sample(from_diffusers(model, scheduler), x0, rtol=1e-7, atol=1e-7).x
    gaps = {steps: gap(run(scheduler, model, x0, steps), flow) for steps in (125, 250, 500, 1000)}
    assert gaps[1000] < 0.003
    for steps in (250, 500, 1000):
        assert 1.7 < gaps[steps // 2] / gaps[steps] < 2.4


SECOND_ORDER = {
    "DPM-Solver++": lambda: diffusers.DPMSolverMultistepScheduler(
        timestep_spacing="trailing", final_sigmas_type="sigma_min"
    ),
    "Heun": lambda: diffusers.HeunDiscreteScheduler(timestep_spacing="linspace", beta_start=1e-4, beta_end=0.02),
    "Euler": lambda: diffusers.EulerDiscreteScheduler(
        timestep_spacing="linspace", final_sigmas_type="sigma_min", beta_start=1e-4, beta_end=0.02
    ),
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(timestep_spacing="trailing", final_sigmas_type="sigma_min"),
    "PNDM": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "DDPM": lambda: diffusers.DDPMScheduler(),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_betas_of_every_scheduler_are_read(name: str) -> None:
    scheduler = SECOND_ORDER[name]()
    velocity = from_diffusers(Exact(scheduler), scheduler)
    torch.testing.assert_close(velocity.schedule.betas, scheduler.betas.double())
    flow = sample(velocity, noise(500), rtol=1e-7, atol=1e-7).x
    reference = sample(from_diffusers(Exact(d := ddim()), d), noise(500), rtol=1e-7, atol=1e-7).x
    assert gap(flow, reference) < 1e-5
    if name in ("DPM-Solver++", "UniPC", "Heun"):
        steps = 100
        x = run(scheduler, Exact(scheduler), noise(500), steps)
        assert gap(x, flow) < 0.01


@pytest.mark.parametrize("ends", [False, True])
def test_densities_round_trips_and_latents(ends: bool) -> None:
    scheduler = ddim("linear", "v_prediction", ends)
    velocity: Any = from_diffusers(Exact(scheduler), scheduler)
    data = marginal(velocity)
    x1 = data.sample(300, seeded()).double()
    error = log_prob(velocity, x1, method="dopri5", rtol=1e-7, atol=1e-7).log_prob - data.log_prob(x1)
    assert float(error.abs().max()) < 0.01
    assert float(round_trip(velocity, x1, method="rk4", steps=100).error.max()) < 1e-3
    latent = invert(velocity, x1, rtol=1e-7, atol=1e-7).x
    assert float(latent.std(0).sub(1).abs().max()) < 0.1


def test_a_learned_variance_is_left_out() -> None:
    scheduler = ddim()
    plain = from_diffusers(Exact(scheduler), scheduler)
    learned = from_diffusers(Exact(scheduler, learned_variance=True), scheduler)
    x, t = noise(5), torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(plain(x, t), learned(x, t))


def test_a_teacher_of_diffusers_is_distilled_and_straightened_on_the_straight_path(tmp_path: Path) -> None:
    scheduler = ddim()
    teacher = from_diffusers(Exact(scheduler), scheduler)
    straight = change_path(teacher)
    pairs = generate_pairs(straight, (2,), 256, tmp_path, name="exact", method="rk4", steps=40)
    x0, x1, _ = pairs.batch(torch.arange(256))
    assert gap(x1.double(), sample(teacher, x0.double(), rtol=1e-7, atol=1e-7).x) < 1e-3
    # The student starts as the teacher's denoiser: its first step gives the mean of the data, not a runaway point.
    start = sample(straight, x0.double(), method="euler", steps=1).x
    assert gap(start, (MIXTURE.weights @ MIXTURE.means).expand_as(start)) < 0.05
    with pytest.warns(UserWarning, match=r"velocity: its model predicts the noise, .* a division by alpha = 0\.0064"):
        student = distill(teacher, pairs, TrainConfig(steps=1, batch_size=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        v = ddim(prediction="v_prediction")
        distill(from_diffusers(Exact(v), v), pairs, TrainConfig(steps=1, batch_size=8))
    assert path_of(student) == LinearPath()
    (flow,) = rectify(teacher, (2,), 1, TrainConfig(steps=1, batch_size=8), n=16, name="exact", method="euler", steps=4)
    assert path_of(flow) == LinearPath()


FLOW_STEPS = (5, 20, 40)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_read_with_sign_shift_and_time(shift: float) -> None:
    scheduler, x0 = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), noise(300)
    model = ExactFlow()
    velocity = from_diffusers(model, scheduler)
    exact = MIXTURE.as_velocity(LinearPath())
    for t in (0.1, 0.5, 0.9):
        time = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(velocity(x0, time), exact(x0, time), rtol=1e-6, atol=1e-6)
    flow = sample(velocity, x0, rtol=1e-7, atol=1e-7).x
    for steps in FLOW_STEPS:
        theirs = run(scheduler, model, x0, steps)
        ours = sample(velocity, x0, method="euler", grid=scheduler_grid(scheduler, steps)).x
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert gap(theirs, flow) < 1.5 / steps
    assert scheduler.timesteps.shape == (FLOW_STEPS[-1],)  # the caller's scheduler has kept its own steps


OTHER_TIMES = {
    "SD3Transformer2DModel": (750.0, -1.0),
    "FluxTransformer2DModel": (0.75, -1.0),
    "AuraFlowTransformer2DModel": (0.75, -1.0),
    "QwenImageTransformer2DModel": (0.75, -1.0),
    "Lumina2Transformer2DModel": (0.25, 1.0),
}


@pytest.mark.parametrize("name", OTHER_TIMES)
def test_what_pipelines_do_between_scheduler_and_model_is_done(name: str) -> None:
    """By the name of the class, as in the pipelines' own lines; the networks are stand-ins."""
    seen = []

    class Noting(ExactFlow):
        def forward(self, hidden_states: Tensor, timestep: Any, return_dict: bool = True) -> Any:
            seen.append(float(timestep[0]))
            return (hidden_states,)

    model = type(name, (Noting,), {})()
    velocity = from_diffusers(model, diffusers.FlowMatchEulerDiscreteScheduler())
    time, sign = OTHER_TIMES[name]
    x = noise(3)
    torch.testing.assert_close(velocity(x, torch.tensor(0.25, dtype=torch.float64)), sign * x)
    assert seen == [pytest.approx(time)]


def test_edm_s_schedulers_are_read_with_their_preconditioning() -> None:
    for prediction in ("epsilon", "v_prediction"):
        scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction)

        class Inside(ExactFlow):
            def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> Any:
                from adapters.exact import expected_data

                sigma = torch.exp(4 * torch.as_tensor(timestep).double()).reshape(-1, 1)
                total = torch.sqrt(sigma**2 + 0.25)
                data = expected_data(sample * total, torch.ones_like(sigma[:, 0]), sigma[:, 0])
                inside = (data - 0.25 / total**2 * sample * total) / (sigma * 0.5 / total)
                inside = -inside if scheduler.config.prediction_type == "v_prediction" else inside  # noqa: B023
                return (inside,) if not return_dict else type("Out", (), {"sample": inside})()

        velocity = from_diffusers(Inside(), scheduler)
        x0 = velocity.path.source_std * noise(200)
        flow = sample(velocity, x0, rtol=1e-7, atol=1e-7).x
        theirs = run(scheduler, Inside(), x0 / scheduler.init_noise_sigma, 200)
        assert gap(theirs, flow) < 0.01


# Networks with random weights -----------------------------------------------------------------------------------------


def unet(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4,
    }  # fmt: skip
    return diffusers.UNet2DModel(**{**options, **changes}).eval()


def conditional() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=6, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def dit() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


def sd3() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, caption_projection_dim=16, pooled_projection_dim=5, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip


SHORT: dict[str, Any] = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2, **DDIM}


@pytest.mark.parametrize(
    ("make", "channels", "condition"),
    [
        (unet, 1, {}),
        (lambda: unet(num_class_embeds=5), 1, {"class_labels": torch.tensor([1, 4])}),
        (conditional, 4, {"encoder_hidden_states": torch.linspace(-1, 1, 36).reshape(2, 3, 6)}),
    ],
    ids=["UNet2D", "with labels", "with text"],
)
def test_networks_and_their_conditions_give_what_ddim_gives(make: Any, channels: int, condition: Any) -> None:
    model, scheduler = make(), diffusers.DDIMScheduler(**SHORT)
    velocity = from_diffusers(model, scheduler)
    x0 = torch.randn(2, channels, 8, 8, generator=seeded())
    y: Any = next(iter(condition.values()), None)
    ours = sample(velocity, x0, y=y, rtol=1e-4, atol=1e-4).x
    theirs = run(scheduler, model, x0, 100, **condition)
    assert gap(ours, theirs) < 0.03 * float(theirs.abs().mean())
    named = sample(velocity, x0, y=condition or None, rtol=1e-4, atol=1e-4).x  # as keyword arguments
    torch.testing.assert_close(named, ours)
    if condition:
        assert gap(sample(velocity, x0, y=0 * y, steps=10).x, sample(velocity, x0, y=y, steps=10).x) > 1e-4


def test_a_dit_has_its_null_label_and_loses_its_learned_variance() -> None:
    velocity = from_diffusers(dit(), diffusers.DDIMScheduler(**SHORT))
    x, y = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([3, 7])
    model, t = velocity.model, torch.tensor(0.5)
    assert model(x, torch.tensor([50.0, 50.0]), y).shape == x.shape
    assert (guided(velocity, 2.0).null, velocity.num_classes) == (10, 10)
    with pytest.raises(ValueError, match="y: expected labels from 0 to 10; got 11 to 11"):
        sample(velocity, x, y=torch.tensor([11, 11]), steps=1)
    v = guided(velocity, 3.0)(x, t, y)
    null = velocity(x, t, torch.tensor([10, 10]))
    torch.testing.assert_close(v, null + 3 * (velocity(x, t, y) - null))
    assert edit(velocity, x, y, y.flip(0), guidance=1.5, steps=2).x.shape == x.shape


def test_an_sd3_transformer_takes_a_dict_and_flows_as_its_scheduler_says() -> None:
    model, scheduler = sd3(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    y = {"encoder_hidden_states": torch.randn(2, 3, 6), "pooled_projections": torch.randn(2, 5)}
    velocity = from_diffusers(model, scheduler, null={name: torch.zeros_like(part) for name, part in y.items()})
    x0 = torch.randn(2, 4, 8, 8, generator=seeded())
    ours = sample(velocity, x0, y=y, method="euler", grid=scheduler_grid(scheduler, 6)).x
    torch.testing.assert_close(ours, run(scheduler, model, x0, 6, **y), rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(sample(guided(velocity, 3.0), x0, y=y, steps=2).x).all())


def test_a_pipeline_from_a_folder(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(**SHORT)
    diffusers.DDIMPipeline(unet=unet(), scheduler=scheduler).save_pretrained(tmp_path)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    velocity = from_diffusers(pipeline)
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    t = torch.tensor(0.3)
    torch.testing.assert_close(velocity(x, t), from_diffusers(unet(), scheduler)(x, t))
    other = from_diffusers(pipeline, diffusers.DDIMScheduler(**{**SHORT, "prediction_type": "v_prediction"}))
    assert other.prediction == "v" and velocity.prediction == "noise"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_keeps_its_dtype_and_the_states_theirs(dtype: torch.dtype) -> None:
    scheduler = diffusers.DDIMScheduler(**SHORT)
    full, other = from_diffusers(unet(), scheduler), from_diffusers(unet().to(dtype), scheduler)
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    v = other(x, torch.tensor(0.5))
    assert v.dtype == torch.float32 and gap(v, full(x, torch.tensor(0.5))) < 0.02 * float(v.abs().mean())


def test_a_table_of_steps_is_called_at_whole_ones() -> None:
    model = unet(time_embedding_type="learned", num_train_timesteps=100)
    velocity: Any = from_diffusers(model, diffusers.DDIMScheduler(**SHORT))
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    assert velocity.model_calls == 2 and velocity(x, torch.tensor(0.123)).shape == x.shape


# Back ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("betas", "prediction", "ends"), VP)
def test_a_velocity_is_sampled_by_ddim(betas: str, prediction: str, ends: bool) -> None:
    velocity, x0, scheduler = MIXTURE.as_velocity(LinearPath()), noise(500), ddim(betas, prediction, ends)
    model = to_diffusers(velocity, scheduler)
    reference = Exact(scheduler)
    x, t = noise(50, seed=1), torch.tensor(400)
    torch.testing.assert_close(model(x, t).sample, reference(x, t).sample, rtol=1e-6, atol=1e-6)
    flow = sample(velocity, x0, rtol=1e-7, atol=1e-7).x
    gaps = [gap(run(scheduler, model, x0, steps), flow) for steps in (250, 500)]
    assert gaps[1] < 0.02  # the noise of the first training step is left


def test_a_velocity_goes_through_flow_matching_schedulers_and_pipelines() -> None:
    velocity, x0 = MIXTURE.as_velocity(LinearPath()), noise(200)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    theirs = run(scheduler, to_diffusers(velocity, scheduler), x0, 10)
    ours = sample(velocity, x0, method="euler", grid=scheduler_grid(scheduler, 10)).x
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    from flowbook.models import UNet

    network = UNet(1, 8, width=8, multipliers=(1, 2))
    ddpm = diffusers.DDIMScheduler()
    model = to_diffusers(network, ddpm)
    assert (model.config.in_channels, model.config.sample_size, model.dtype) == (1, 8, torch.float32)
    images = diffusers.DDIMPipeline(unet=model, scheduler=ddpm)(
        batch_size=2, num_inference_steps=3, output_type="np"
    ).images
    assert images.shape == (2, 8, 8, 1)
    there = from_diffusers(_Module(model), ddpm)
    x, t = torch.randn(2, 1, 8, 8, generator=seeded()), torch.tensor(0.5)
    straight = change_path(there)
    torch.testing.assert_close(straight(x, t), network(x, t), rtol=1e-3, atol=1e-3)


class _Module(nn.Module):
    """A velocity as a model of diffusers, and back again."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        return self.model(sample, timestep, return_dict=return_dict)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_diffusers(unet()), TypeError, "scheduler: expected the scheduler of the model, .* got None"),
        (lambda: from_diffusers("google/ddpm"), TypeError, "model: expected a network of diffusers, or a pipeline"),
        (lambda: from_diffusers(nn.Linear(2, 2), ddim()), TypeError, "model: expected a network of diffusers"),
        (lambda: from_diffusers(unet(), diffusers.CMStochasticIterativeScheduler()), ValueError, "scheduler: expected"),
        (
            lambda: from_diffusers(unet(), diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)),
            ValueError,
            "scheduler: .*invert_sigmas=True",
        ),
        (
            lambda: from_diffusers(
                unet(), diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
            ),
            ValueError,
            "scheduler: expected timestep_type='discrete'",
        ),
        (lambda: from_diffusers(unet(), ddim(ends=True)), ValueError, "prediction: expected 'v' or 'data'"),
        (
            lambda: from_diffusers(conditional(), ddim())(torch.zeros(1, 4, 8, 8), 0.5),
            ValueError,
            "y: expected the embeddings that a UNet2DConditionModel needs; got None",
        ),
        (
            lambda: from_diffusers(dit(), ddim())(torch.zeros(1, 4, 8, 8), 0.5, (torch.tensor([1]),)),
            TypeError,
            "y: expected a tensor, or a dict of arguments by name",
        ),
        (lambda: to_diffusers(lambda x, t: x, "ddim"), TypeError, "scheduler: expected the scheduler of the model"),
        (lambda: to_diffusers(3, ddim()), TypeError, "velocity: expected a function"),  # type: ignore[arg-type]
        (lambda: scheduler_grid(ddim(), 0), ValueError, "steps: expected an integer of at least 1; got 0"),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=message):
            call()
