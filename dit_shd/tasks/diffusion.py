"""Class-conditional diffusion: the student predicts the noise of DDPM, in MDT's masked pass, too."""

from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion.conditioning import Conditioning
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.objectives import noise_error, split, variational_bits
from dit_shd.diffusion.process import DDPM
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models.prediction import NOISE, prediction_of
from dit_shd.tasks import Output, Terms
from dit_shd.tasks._class_conditional import ClassConditional, NoisyBatch

PLAIN = SampleEvaluation()
MOST_GAMMA = 1e6


class Diffusion(ClassConditional):
    """Noise prediction on latents with class labels (Ho et al., arXiv 2006.11239; MDT, arXiv 2303.14389).

    Args:
        label_dropout: Share of labels dropped, for guidance.
        mask_ratio: Masked pass: a share drawn once a step from here to +0.2 is hidden; empty for no masked pass.
        min_snr_gamma: Weight min(SNR, gamma)/SNR of the noise error; empty for none.
        timesteps: Steps of the linear noise schedule.
        evaluation: Samples and figures while training: count, steps, guidance, labels, reference, features, sample,
            evaluate, keep.
    """

    def __init__(
        self,
        label_dropout: float = 0.1,
        mask_ratio: float | None = 0.3,
        min_snr_gamma: float | None = 5.0,
        timesteps: int = 1000,
        evaluation: SampleEvaluation = PLAIN,
    ):
        super().__init__(Conditioning(label_dropout, mask_ratio), evaluation)
        if min_snr_gamma is not None and not 0 <= min_snr_gamma <= MOST_GAMMA:
            raise UserError(f"task.min_snr_gamma: wanted a number from 0 to {MOST_GAMMA:g}, found {min_snr_gamma}")
        self.gamma, self.schedule = min_snr_gamma, Schedule.linear(timesteps, "task.timesteps")

    def check_model(self, role: str, model: nn.Module) -> None:
        """Also, it must predict noise."""
        super().check_model(role, model)
        if prediction_of(model) != NOISE:
            raise UserError(
                f"{role}: predicts {prediction_of(model)} and not noise; wanted task.name=flow_matching, or a model "
                "that predicts noise"
            )

    def times(self, uniform: Tensor, side: int) -> Tensor:
        return (uniform * len(self.schedule)).long()

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x_0, noise, t)

    def process(self, model: nn.Module) -> DDPM:
        return DDPM(self.schedule)

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Output:
        output = Denoiser(model)(batch.x_t, batch.t, batch.labels, batch.keep).float()
        return self._output(*split(output, batch.x_t.shape[1]), batch)

    def guided(self, conditional: Output, unconditional: Output, batch: NoisyBatch, guidance: Guidance) -> Output:
        """The variance is the conditional one, and the mean that of the guided noise."""
        share = batch.t / len(self.schedule)
        noise = guidance.combined(conditional.prediction, unconditional.prediction, share)
        return self._output(noise, conditional.extra.get("variance"), batch)

    def _output(self, noise: Tensor, v: Tensor | None, batch: NoisyBatch) -> Output:
        if v is None:
            return Output(noise)
        x_0 = self.schedule.predict_x_0(batch.x_t, noise, batch.t)
        mean = self.schedule.posterior_mean(x_0, batch.x_t, batch.t)
        return Output(noise, {"variance": v, "mean": mean, "log_variance": self.schedule.log_variance(v, batch.t)})

    def losses(self, output: Output, batch: NoisyBatch) -> Terms:
        terms = {"noise": noise_error(self.schedule, output.prediction, batch.noise, batch.t, self.gamma)}
        v = output.extra.get("variance")
        if v is not None:
            terms["variational"] = variational_bits(self.schedule, batch.x_0, batch.x_t, output.prediction, v, batch.t)
        return terms

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        self.evaluation.check(NOISE, len(self.schedule))
        super().check_evaluation(student, kept)
