"""What adapters read and hand on besides the model: times, schedules, further arguments, paths, dtypes."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from adapters.exact import MIXTURE, Exact, ExactFlow, as_predicted, gap, noise, run, seeded
from adapters.test_diffusers import SHORT, _Module, conditional, ddim, dit, sd3, unet
from torch import Tensor, nn

from flowbook.adapters import (
    from_callable,
    from_diffusers,
    from_edm,
    from_score,
    from_torchcfm,
    scheduler_grid,
    to_diffusers,
    to_edm,
)
from flowbook.adapters.pipelines import A_THOUSANDTH, AS_THE_SCHEDULER, IN_UNITS, OTHERS
from flowbook.adapters.schedulers import schedule_of
from flowbook.cnf import log_prob
from flowbook.condition import TrainedOn, remember
from flowbook.diffusion import NoiseSchedule, SchedulePath, probability_flow
from flowbook.guidance import guided
from flowbook.metrics import straightness
from flowbook.models import MLP, UNet, load_pretrained
from flowbook.paths import CosinePath, LinearPath, RetimedPath, SubVPPath, VEPath, VPPath, change_path, path_of
from flowbook.solvers import sample

pytestmark = pytest.mark.filterwarnings("ignore:the schedule's last step keeps")

T = torch.tensor


class Asked(nn.Module):
    """A model of diffusers that notes with what it is called."""

    def __init__(self, **config: Any):
        super().__init__()
        self.config, self.seen = SimpleNamespace(**config), list[dict[str, Any]]()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(
        self, sample: Tensor, timestep: Any, class_labels: Any = None, mask: Any = None, return_dict: bool = True
    ) -> Any:
        self.seen.append({"timestep": timestep, "class_labels": class_labels, "mask": mask, "dtype": sample.dtype})
        return (sample,)


# Times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [100, 1000])
def test_the_unit_of_time_of_flow_matching_is_the_scheduler_s(steps: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    exact, x = MIXTURE.as_velocity(LinearPath()), noise(300)

    class Own(ExactFlow):
        def forward(self, hidden_states: Tensor, timestep: Any, return_dict: bool = True) -> Any:
            return super().forward(hidden_states, torch.as_tensor(timestep) * 1000 / steps, return_dict)

    velocity = from_diffusers(Own(), scheduler)
    torch.testing.assert_close(velocity(x, T(0.5).double()), exact(x, T(0.5).double()), rtol=1e-6, atol=1e-6)
    ours = sample(velocity, x, method="euler", grid=scheduler_grid(scheduler, 20)).x
    torch.testing.assert_close(ours, run(scheduler, Own(), x, 20), rtol=1e-5, atol=1e-5)
    there = from_diffusers(_Module(to_diffusers(exact, scheduler)), scheduler)
    torch.testing.assert_close(there(x, T(0.5).double()), exact(x, T(0.5).double()), rtol=1e-5, atol=1e-5)
    assert schedule_kept(scheduler)


def schedule_kept(scheduler: Any) -> bool:
    before = scheduler.timesteps.clone()
    scheduler_grid(scheduler, len(before) + 3)
    return torch.equal(before, scheduler.timesteps)


def test_heun_s_scheduler_is_heun_on_its_grid() -> None:
    scheduler, x = diffusers.FlowMatchHeunDiscreteScheduler(), noise(100)
    ours = sample(from_diffusers(ExactFlow(), scheduler), x, method="heun", grid=scheduler_grid(scheduler, 10)).x
    theirs = run(diffusers.FlowMatchHeunDiscreteScheduler(), ExactFlow(), x, 10)
    assert gap(ours, theirs) < 1e-4


def test_the_grid_of_a_scheduler_of_steps() -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=101, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    visited = sorted(1 - scheduler.timesteps.double() / 100)
    grid = scheduler_grid(scheduler, 4)
    assert (
        grid[0] == 0
        and grid[-1] == 1
        and [t for t in grid if 0 < t < 1] == pytest.approx([float(t) for t in visited if 0 < t < 1])
    )
    assert schedule_kept(scheduler)


CALLED = {
    **dict.fromkeys(AS_THE_SCHEDULER, (750.0, -1.0)),
    **dict.fromkeys(A_THOUSANDTH, (0.75, -1.0)),
    **dict.fromkeys(IN_UNITS, (0.75, -1.0)),
    "Lumina2Transformer2DModel": (0.25, 1.0),
    "LuminaNextDiT2DModel": (0.25, 1.0),
    "NucleusMoEImageTransformer2DModel": (0.75, 1.0),
}


@pytest.mark.parametrize("name", sorted(CALLED))
@pytest.mark.parametrize("derived", [False, True])
def test_a_listed_transformer_is_called_as_by_its_pipeline(name: str, derived: bool) -> None:
    """By the name of the class, as in the pipelines' own lines; the networks are stand-ins."""
    cls = type(name, (Asked,), {})
    model = (type("MyOwn", (cls,), {}) if derived else cls)()
    time, sign = CALLED[name]
    velocity, x = from_diffusers(model, diffusers.FlowMatchEulerDiscreteScheduler()), torch.randn(3, 2)
    torch.testing.assert_close(velocity(x, T(0.25)), sign * x)
    assert float(model.seen[0]["timestep"][0]) == pytest.approx(time)


def test_what_is_listed_is_what_the_pipelines_say() -> None:
    """In the pipelines' own source: a division by 1000, a time that is turned round, a negated output."""
    pipelines = Path(diffusers.__file__).parent / "pipelines"
    if not (pipelines / "lumina2").is_dir():
        pytest.skip("the diffusers installed has no Lumina 2 yet")
    flux, lumina, sd3 = (
        (pipelines / name).read_text(encoding="utf-8")
        for name in (
            "flux/pipeline_flux.py", "lumina2/pipeline_lumina2.py",
            "stable_diffusion_3/pipeline_stable_diffusion_3.py",
        )
    )  # fmt: skip
    assert "timestep=timestep / 1000" in flux
    assert "1 - t / self.scheduler.config.num_train_timesteps" in lumina and "noise_pred = -noise_pred" in lumina
    assert "timestep=timestep," in sd3
    assert not AS_THE_SCHEDULER & A_THOUSANDTH and not OTHERS.keys() & (AS_THE_SCHEDULER | A_THOUSANDTH | IN_UNITS)


def test_a_transformer_that_is_not_known_asks_for_its_times() -> None:
    cls = type("NewTransformer2DModel", (Asked,), {"__module__": "diffusers.models.transformers.new"})
    scheduler, x = diffusers.FlowMatchEulerDiscreteScheduler(), torch.randn(3, 2)
    with pytest.raises(
        ValueError, match=r"how NewTransformer2DModel is called .* expected time_scale, reverse and sig"
    ):
        from_diffusers(cls(), scheduler)
    with pytest.raises(ValueError, match="got sign"):
        from_diffusers(cls(), scheduler, sign=1)
    model = cls()
    velocity = from_diffusers(model, scheduler, time_scale=2.0, reverse=False, sign=1)
    assert torch.equal(velocity(x, T(0.25)), x) and float(model.seen[0]["timestep"][0]) == 0.5
    with pytest.raises(ValueError, match="sign: expected None, since DDIMScheduler says"):
        from_diffusers(unet(), ddim(), sign=1)


def test_sana_scales_its_time() -> None:
    model = type("SanaTransformer2DModel", (Asked,), {})(timestep_scale=0.001)
    from_diffusers(model, diffusers.FlowMatchEulerDiscreteScheduler())(torch.zeros(1, 2), T(0.25))
    assert float(model.seen[0]["timestep"][0]) == pytest.approx(0.75)


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
def test_products_that_differ_from_the_betas_count(ends: bool) -> None:
    """CogVideoX shifts the products and leaves the betas."""
    scheduler = diffusers.CogVideoXDDIMScheduler(
        snr_shift_scale=3.0, rescale_betas_zero_snr=ends, prediction_type="v_prediction", timestep_spacing="trailing",
        set_alpha_to_one=False,
    )  # fmt: skip
    schedule = schedule_of(scheduler)
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=1e-5, atol=1e-9)
    assert schedule.ends_in_pure_noise == ends

    class Theirs(Exact):
        def __init__(self) -> None:
            super().__init__(scheduler)
            self.path = SchedulePath(schedule)

    flow = sample(from_diffusers(Theirs(), scheduler), noise(200), rtol=1e-7, atol=1e-7).x
    assert gap(run(scheduler, Theirs(), noise(200), 500), flow) < 0.01
    x, i = noise(20), T(400)
    back = to_diffusers(MIXTURE.as_velocity(LinearPath()), scheduler)(x, i).sample
    torch.testing.assert_close(back, Theirs()(x, i).sample, rtol=1e-5, atol=1e-5)


def test_products_of_which_only_the_last_is_replaced_are_the_betas() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert schedule_of(scheduler).ends_in_pure_noise


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        diffusers.LCMScheduler(),
        diffusers.TCDScheduler(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_both_directions_refuse_the_same_schedulers(scheduler: Any) -> None:
    for adapt in (lambda: from_diffusers(unet(), scheduler), lambda: to_diffusers(lambda x, t: x, scheduler)):
        with pytest.raises(ValueError, match="scheduler: expected"):
            adapt()


def test_flow_prediction_is_taken_in_both_directions() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    exact, x = MIXTURE.as_velocity(LinearPath()), noise(200)
    model = to_diffusers(exact, scheduler)
    there = from_diffusers(_Module(model), scheduler)
    torch.testing.assert_close(there(x, T(0.5).double()), exact(x, T(0.5).double()), rtol=1e-5, atol=1e-5)
    assert gap(run(scheduler, model, x, 40), sample(exact, x).x) < 0.02


def test_edm_s_numbers_are_read() -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=10.0, sigma_data=0.7)
    velocity: Any = from_diffusers(Asked(), scheduler)
    assert velocity.path == VEPath(0.01, 10.0) and velocity.model.sigma_data == 0.7
    with pytest.raises(ValueError, match=r"see paths\.karras_grid"):
        scheduler_grid(scheduler, 4)
    with pytest.raises(ValueError, match="see to_edm"):
        to_diffusers(velocity, scheduler)


# Conditions and further arguments -------------------------------------------------------------------------------------


def test_labels_that_are_missing_stand_for_the_null() -> None:
    model = Asked(num_class_embeds=5)
    velocity, x = from_diffusers(model, ddim(), null=4), torch.zeros(3, 1, 2, 2)
    sample(velocity, x, steps=1, method="euler")
    assert model.seen[-1]["class_labels"].tolist() == [4, 4, 4]
    sample(velocity, x, y=T([-1, 2, 0]), steps=1, method="euler")
    assert model.seen[-1]["class_labels"].tolist() == [4, 2, 0]
    sample(velocity, x, y={"class_labels": T([-1, 2, 0])}, steps=1, method="euler")
    assert model.seen[-1]["class_labels"].tolist() == [4, 2, 0]
    with pytest.raises(ValueError, match="got -1"):  # without a null
        sample(from_diffusers(Asked(num_class_embeds=5), ddim()), x, y=T([-1, 2, 0]), steps=1)
    assert from_diffusers(dit(), ddim(), null=3).null == 3


def test_a_tensor_is_an_embedding_where_labels_are_something_else() -> None:
    torch.manual_seed(0)
    both = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=6, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), num_class_embeds=3,
    )  # fmt: skip
    velocity = from_diffusers(both, ddim(), class_labels=T([1, 1]))
    x = torch.zeros(2, 4, 8, 8)
    assert sample(velocity, x, y=torch.randn(2, 3, 6), steps=1).x.shape == x.shape
    seen: list[Any] = []

    def noting(x: Tensor, t: Tensor, y: Any = None) -> Tensor:
        seen.append(y)
        return x

    text = to_diffusers(noting, ddim())
    text(x, 5, encoder_hidden_states=torch.ones(2, 1), class_labels=T([1, 2]))
    assert set(seen[0]) == {"encoder_hidden_states", "class_labels"}
    text(x, 5, class_labels=T([1, 2]))
    assert seen[1].tolist() == [1, 2]
    with pytest.raises(TypeError, match="added_cond_kwargs: expected None"):
        text(x, 5, added_cond_kwargs={})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conditions_and_further_arguments_get_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    y = {"encoder_hidden_states": torch.randn(2, 3, 6), "pooled_projections": torch.randn(2, 5)}
    flow = from_diffusers(sd3().to(dtype), diffusers.FlowMatchEulerDiscreteScheduler())
    x = torch.randn(2, 4, 8, 8, generator=seeded())
    assert flow(x, T(0.5), y).dtype == torch.float32
    text = conditional().to(dtype)
    fixed = from_diffusers(text, ddim(), encoder_hidden_states=y["encoder_hidden_states"])
    torch.testing.assert_close(fixed(x, T(0.5)), from_diffusers(text, ddim())(x, T(0.5), y["encoder_hidden_states"]))


def test_further_arguments_reach_the_model_everywhere() -> None:
    def net(x: Tensor, sigma: Tensor, y: Any = None, *, mask: float, label: Any = None) -> Tensor:
        return mask * torch.ones_like(x) + (0 if label is None else label[:, None])

    velocity, x = from_edm(net, mask=3.0), torch.zeros(2, 1)
    assert velocity.model(x, T(0.5)).tolist() == [[3.0], [3.0]]
    assert velocity.model(x, T(0.5), {"label": T([1.0, 2.0])}).tolist() == [[4.0], [5.0]]
    net.null = 7  # type: ignore[attr-defined]
    assert from_edm(net, mask=3.0).null == 7
    twice = from_torchcfm(lambda t, x, scale: scale * x, scale=2.0, path=CosinePath())
    assert twice(torch.ones(1, 1), T(0.5)).item() == 2 and path_of(twice) == CosinePath()
    with pytest.raises(TypeError, match="timescale: f has no argument of this name; is time_scale meant"):
        from_callable(lambda x, t, **more: x, timescale=1000.0)
    assert from_callable(lambda x, t, scale: scale * x, scale=2.0)(x + 1, 0.5).tolist() == [[2.0], [2.0]]


def test_scores_have_the_numbers_of_their_sde_and_hand_their_condition_on() -> None:
    def score(x: Tensor, s: Tensor, y: Any = None) -> Tensor:
        return x * s.reshape(-1, 1) * (1 if y is None else y[:, None])

    assert path_of(from_score(score, "vp", beta_min=0.2, beta_max=10.0)) == VPPath(0.2, 10.0)
    assert path_of(from_score(score, "subvp", beta_min=0.2, beta_max=10.0)) == SubVPPath(0.2, 10.0)
    assert path_of(from_score(score, "ve", sigma_min=0.1, sigma_max=9.0)) == VEPath(0.1, 9.0, rho=math.inf)
    x, y = torch.ones(2, 1), T([1.0, 3.0])
    v = from_score(score, "ve", argument="sigma")
    both = v.model(x, T(0.5), y)
    assert torch.equal(both, v.model(x, T(0.5)) * y[:, None])
    with pytest.raises(ValueError, match="time_scale: expected 1 with argument='sigma'"):
        from_score(score, "ve", argument="sigma", time_scale=999.0)


# Wrapped --------------------------------------------------------------------------------------------------------------


def test_compiled_and_averaged_networks_are_read_like_the_plain_one() -> None:
    model, x, y = unet(num_class_embeds=5), torch.randn(2, 1, 8, 8, generator=seeded()), T([1, 4])
    expected = from_diffusers(model, ddim())(x, T(0.3), y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        averaged = torch.optim.swa_utils.AveragedModel(model)
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model), averaged):
        velocity = from_diffusers(wrapped, ddim())
        assert velocity.num_classes == 5
        torch.testing.assert_close(velocity(x, T(0.3), y), expected)


class Holder:
    """An object that is called, and holds its network in an attribute."""

    def __init__(self, net: Any):
        self.net = net

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.net["a"] if isinstance(self.net, dict) else self.net)(x)


@pytest.mark.parametrize(
    "adapt",
    [
        lambda net: Holder(net),
        lambda net: Holder({"a": net}),
        lambda net: from_callable(Holder(net)),
        lambda net: from_edm(Holder(net)),
        lambda net: from_score(Holder(net)),
        lambda net: change_path(Holder(net)),
        lambda net: from_callable(lambda x, t: [net][0](x)),
        lambda net: to_edm(Holder(net)),
    ],
)
def test_networks_in_objects_are_put_in_eval_mode(adapt: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    velocity, x = adapt(net), torch.ones(4, 2)
    runs = [sample(velocity, x, steps=1, method="euler").x for _ in range(2)]
    assert torch.equal(*runs) and net.training


def test_to_edm_takes_states_in_float64_as_edm_s_sampler_has_them() -> None:
    denoiser, sigma = to_edm(load_pretrained("digits")), T(0.5).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert denoiser(x, sigma).dtype == torch.float64
    torch.testing.assert_close(denoiser(x, sigma).float(), denoiser(x.float(), sigma.float()), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="sigma: expected one number, or one for each of 2 samples; got 3"):
        denoiser(x, torch.ones(3))
    with pytest.raises(ValueError, match="sigma: expected noise levels of 0 or more; got -1"):
        denoiser(x, T(-1.0))


def test_to_diffusers_says_the_shape_and_sees_no_dropout() -> None:
    scheduler = ddim()
    assert to_diffusers(UNet(1, (8, 16), width=8, multipliers=(1, 2)), scheduler).config.sample_size == (8, 16)
    assert to_diffusers(lambda x, t: x, scheduler, shape=(3, 8, 8)).config.sample_size == 8
    back = to_diffusers(from_diffusers(unet(), scheduler), scheduler)
    assert (back.config.in_channels, back.config.sample_size) == (1, 8)
    images = diffusers.DDIMPipeline(unet=back, scheduler=scheduler)(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 1)
    model = to_diffusers(Holder(nn.Dropout(0.5)), scheduler)
    assert torch.equal(model(torch.ones(4, 2), 5).sample, model(torch.ones(4, 2), 5).sample)
    with pytest.raises(ValueError, match="scheduler: expected one with a fixed variance"):
        to_diffusers(lambda x, t: x, diffusers.DDPMScheduler(variance_type="learned_range"))


# The path -------------------------------------------------------------------------------------------------------------


def test_a_function_of_a_velocity_has_its_path() -> None:
    v = from_edm(lambda x, sigma: 0 * x)

    class Method:
        def __init__(self) -> None:
            self.v = v

        def run(self, x: Tensor, t: Tensor) -> Tensor:
            return self.v(x, t)

    for function in (functools.partial(v), lambda x, t: v(x, t), Method().run, guided(functools.partial(v), 1.0, 0)):
        assert path_of(function) == VEPath()
    assert path_of(lambda x, t: change_path(v)(x, t)) == VEPath()  # made inside: say .path
    straight = change_path(v)
    assert path_of(lambda x, t: straight(x, t)) == LinearPath()
    assert path_of(MIXTURE.as_velocity(CosinePath())) == CosinePath()


def test_densities_through_a_partial_start_from_the_noise_of_the_path() -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:  # of N(2, 0.25)
        s = sigma.reshape(-1, 1) ** 2
        return (0.25 * x + 2 * s) / (0.25 + s)

    v, x = from_edm(denoiser), T([[2.0], [2.5], [1.0]])
    expected = torch.distributions.Normal(2.0, 0.5).log_prob(x)[:, 0]
    for velocity in (v, functools.partial(v), lambda x, t: v(x, t)):
        torch.testing.assert_close(log_prob(velocity, x).log_prob, expected, rtol=0, atol=0.06)


def test_noise_that_is_far_too_small_for_the_path_warns() -> None:
    v = from_edm(lambda x, sigma: 0 * x)
    with pytest.warns(
        UserWarning, match=r"x0: the velocity's path starts from noise of standard deviation 80; got 1\."
    ):
        sample(v, torch.randn(1000, 1, generator=seeded()), steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(v, v.path.source((1,)).sample(1000), steps=1)
        sample(lambda x, t: x, torch.zeros(1000, 1), steps=1)


def test_a_retimed_path_ends_where_its_velocity_is_finite() -> None:
    v = change_path(MIXTURE.as_velocity(LinearPath()), RetimedPath(VPPath(), 3.0))
    assert bool(torch.isfinite(v(noise(4), T(1.0).double())).all())


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_times_and_conversion_stay_in_float32_for_states_in_half_precision(dtype: torch.dtype, prediction: str) -> None:
    scheduler = ddim("linear", prediction)
    path = SchedulePath(NoiseSchedule(scheduler.betas.double()))

    def model(x: Tensor, i: Tensor) -> Tensor:
        t = 1 - i.double() / 999
        return as_predicted(x.double(), path.alpha(t), path.sigma(t), prediction).to(torch.float32)

    names: Any = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
    velocity = probability_flow(model, NoiseSchedule(scheduler.betas.double()), prediction=names[prediction])
    x = noise(50).to(dtype)
    for t in (0.02, 0.1, 0.9):
        v = velocity(x, torch.tensor(t)).double()
        exact = velocity(x.double(), torch.tensor(t, dtype=torch.float64))
        assert gap(v, exact) < 0.01 * float(exact.abs().mean())


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_states_in_bfloat16_are_sampled_by_models_in_bfloat16(method: Any) -> None:
    velocity = from_diffusers(unet().to(torch.bfloat16), diffusers.DDIMScheduler(**SHORT))
    x = torch.randn(2, 1, 8, 8, generator=seeded()).bfloat16()
    result = sample(velocity, x, method=method, steps=30).x
    assert result.dtype == torch.bfloat16 and bool(torch.isfinite(result).all())


def test_times_that_are_integers_and_outputs_of_another_dtype() -> None:
    f = from_callable(lambda x, t: (x * t).double())
    v = f.model(torch.full((1, 1), 3.0), T(1))
    assert v.dtype == torch.float32 and v.item() == 3
    assert from_callable(lambda x, t: 0 * x + 1, output="data")(torch.ones(1, 1).half(), 1.0).isfinite().all()


# The order of the arguments -------------------------------------------------------------------------------------------


def time_first(t: Any, x: Tensor) -> Tensor:
    return x / (1 + t)


class TimeFirst(nn.Module):
    def forward(self, t: Any, x: Tensor) -> Tensor:
        return x / (1 + t)


class Object:
    def __call__(self, t: Any, x: Tensor) -> Tensor:
        return x / (1 + t)


@pytest.mark.parametrize(
    "velocity",
    [time_first, TimeFirst(), Object(), functools.partial(time_first), nn.DataParallel(TimeFirst())],
    ids=["function", "module", "object", "partial", "parallel"],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda v: sample(v, torch.ones(2, 2)),
        lambda v: from_callable(v),
        lambda v: change_path(v),
        lambda v: guided(v, 2.0, 0),
        lambda v: log_prob(v, torch.ones(2, 2)),
        lambda v: straightness(v, torch.ones(2, 2), steps=2),
    ],
)
def test_the_time_first_is_refused_wherever_a_velocity_is_taken(velocity: Any, use: Any) -> None:
    with pytest.raises(TypeError, match=r"v\(x, t\), the state first; .*order=\"t,x\""):
        use(velocity)


def test_an_order_that_the_names_contradict_is_refused() -> None:
    with pytest.raises(TypeError, match='the time first, as order="t,x" says; got one whose first two arguments are x'):
        from_callable(lambda x, t: x / (1 + t), order="t,x")


def test_guidance_through_an_adapter_knows_what_was_trained() -> None:
    network = MLP(2, num_classes=3)
    remember(network, TrainedOn(something=True, nothing=False))
    with pytest.warns(UserWarning, match="guided: the network was trained with a condition on every sample"):
        guided(from_callable(network), 2.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: from_diffusers(unet(), diffusers.DDIMScheduler),
            TypeError,
            "scheduler: expected the scheduler of the",
        ),
        (lambda: scheduler_grid("ddim", 4), TypeError, "scheduler: expected the scheduler of the model, .* got 'ddim'"),
        (
            lambda: from_callable(lambda x, t: x, time_scale=0.0),
            ValueError,
            "time_scale: expected a number that is not",
        ),
        (lambda: from_callable(lambda x, t: x, output=["noise"]), ValueError, "output: expected"),  # type: ignore[arg-type]
        (lambda: from_callable(lambda x, t: x, condition="*"), ValueError, "condition: expected the name of an argum"),
        (
            lambda: from_callable(lambda x, t: x[:, :1])(torch.ones(2, 2), 0.5),
            ValueError,
            "the model's output: expected the shape of x",
        ),
        (
            lambda: from_diffusers(unet(), ddim())(torch.zeros(2, 1, 8, 8), 0.5, {"class_label": T([1, 2])}),
            ValueError,
            "y: UNet2DModel takes no class_label; expected some of sample, timestep, class_labels",
        ),
    ],
)
def test_misuse_names_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
