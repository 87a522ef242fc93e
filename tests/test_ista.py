"""The ISTA step in one product over the tokens against the step as the paper writes it."""

import copy
import gc
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeModel, crate_layers, modeling_crate_mae
from crate_mae_hf.crate_layers import CrateISTA
from crate_mae_hf.crate_ops import FoldDictionary, _folded_dictionaries, apply_norm, naive_ista_step, normed_product


def make_ista(width: int, step_size: float = 0.1, dtype: torch.dtype = torch.float32) -> CrateISTA:
    ista = CrateISTA(width, step_size, sparsity_weight=0.5).to(dtype)
    nn.init.kaiming_uniform_(ista.dictionary)
    return ista


def value_and_gradients(function, tokens: torch.Tensor, dictionary: torch.Tensor) -> list[torch.Tensor]:
    """The step away from its kink, and the gradients of its sum of squares."""
    output = function(tokens)
    gradients = torch.autograd.grad(output.square().sum(), (tokens, dictionary))
    return [output.detach(), *gradients]


def sums_of_terms(
    tokens: torch.Tensor, dictionary: torch.Tensor, step_size: float, threshold: float, weight: torch.Tensor
) -> list[torch.Tensor]:
    """Sizes of what the weighted step and its gradients add up: where those terms cancel, their roundings stay."""
    tokens, dictionary = tokens.detach().abs().requires_grad_(), dictionary.detach().abs().requires_grad_()
    step = tokens + step_size * (tokens @ dictionary + tokens @ dictionary.T @ dictionary) + threshold
    return [step.detach(), *torch.autograd.grad((step * weight.abs()).sum(), (tokens, dictionary))]


def assert_rounded(
    actual: list[torch.Tensor], expected: list[torch.Tensor], terms: list[torch.Tensor], dtype: torch.dtype
) -> None:
    for value, exact, size in zip(actual, expected, terms, strict=True):
        error = (value.double() - exact).abs().max() / size.max().clamp(min=1e-6)
        assert error <= 8 * torch.finfo(dtype).eps, error


shapes = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 60)), st.integers(1, 60).map(lambda n: (n,)), st.just((2, 3, 20))
)


@settings(max_examples=150, deadline=None)
@given(
    shape=shapes,
    width=st.sampled_from([1, 4, 12, 33, 48]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    autocast=st.booleans(),
    step_size=st.sampled_from([0.01, 0.1, 0.7]),
    seed=st.integers(0, 2**16),
)
def test_fast_and_literal_step_agree_in_value_and_gradient(shape, width, dtype, autocast, step_size, seed):
    torch.manual_seed(seed)
    autocast = autocast and dtype == torch.float32
    ista = make_ista(width, step_size, dtype)
    tokens = torch.randn(*shape, width).to(dtype).requires_grad_()
    exact_tokens = tokens.detach().double().requires_grad_()
    exact_dictionary = ista.dictionary.detach().double().requires_grad_()
    expected = naive_ista_step(exact_tokens, exact_dictionary, step_size, ista.threshold)
    # Rounding moves values across ReLU's kink: weigh by the exact distance, which vanishes there.
    weight = expected.detach()

    def loss_and_gradients(output, *inputs):
        return [output.detach(), *torch.autograd.grad((output * weight.to(output.dtype)).sum(), inputs)]

    expected_values = loss_and_gradients(expected, exact_tokens, exact_dictionary)
    terms = sums_of_terms(exact_tokens, exact_dictionary, step_size, ista.threshold, weight)
    precision = torch.bfloat16 if autocast else dtype
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = ista(tokens)
    assert output.dtype == dtype
    assert_rounded(loss_and_gradients(output, tokens, ista.dictionary), expected_values, terms, precision)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        kept = ista.eval()(tokens)
    assert_rounded([kept], expected_values[:1], terms[:1], precision)


def count_products(function) -> int:
    """Matrix products over the call."""
    with torch.profiler.profile() as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm", "aten::bmm"))


def test_number_of_products():
    ista = make_ista(12)
    many, few = torch.randn(2, 9, 12, requires_grad=True), torch.randn(8, 12, requires_grad=True)

    def step(tokens):
        ista(tokens).sum().backward()

    assert count_products(lambda: step(many)) == 5  # M and its gradient, and three over the tokens
    assert count_products(lambda: step(few)) == 6
    ista.eval()
    with torch.no_grad():
        assert count_products(lambda: ista(few)) == 2
        assert count_products(lambda: ista(few)) == 1


def test_gradients_of_any_order():
    dictionary = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FoldDictionary.apply, (dictionary, 0.1), fast_mode=False)
    assert torch.autograd.gradgradcheck(FoldDictionary.apply, (dictionary, 0.1))
    norm = nn.LayerNorm(5, dtype=torch.float64)
    nn.init.normal_(norm.weight)

    def product(tokens, matrix):
        return normed_product(*apply_norm(norm, tokens), matrix)

    tokens = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert "NormedProduct" in type(product(tokens, dictionary).grad_fn).__name__
    assert torch.autograd.gradcheck(product, (tokens, dictionary), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(product, (tokens, dictionary))


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_laid_out_as_weights(transposed):
    norm, tokens = nn.LayerNorm(5), torch.randn(2, 3, 5)
    dictionary = torch.randn(5, 5, requires_grad=True)
    matrix = dictionary.T if transposed else dictionary
    (gradient,) = torch.autograd.grad(normed_product(*apply_norm(norm, tokens), matrix).square().sum(), dictionary)
    (expected,) = torch.autograd.grad((norm(tokens) @ matrix).square().sum(), dictionary)
    torch.testing.assert_close(gradient, expected)
    assert gradient.is_contiguous()  # or accumulating it would copy


def gradients_and_kept(model, pixel_values, autocast) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients by name, and the bytes that the forward keeps for them."""
    kept = []

    def pack(tensor):
        kept.append(tensor.detach())  # held, so that no later tensor takes its address
        return tensor

    model.zero_grad()
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        loss = model(pixel_values, noise=noise).loss
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return gradients, sum(sizes.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", ["none", "dictionary", "layernorm"])
@pytest.mark.parametrize("hook", ["none", "layernorm_after", "ista"])
def test_norms_computed_again(config, pixel_values, monkeypatch, autocast, frozen, hook):
    model = CrateMaeForPreTraining(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    layer = model.crate_mae.layers[1]
    if hook == "layernorm_after":
        layer.layernorm_after.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif hook == "ista":
        layer.ista.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    actual, kept = gradients_and_kept(model, pixel_values, autocast)
    for module in (crate_layers, modeling_crate_mae):
        monkeypatch.setattr(module, "apply_norm", lambda norm, hidden_states: (norm(hidden_states), None))
    expected, plainly_kept = gradients_and_kept(model, pixel_values, autocast)
    tolerance = 1e-2 if autocast else 1e-5
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    if frozen != "dictionary":  # whose gradient alone takes the normed tokens
        assert kept < plainly_kept


def test_function_transforms():
    ista = make_ista(6)
    tokens, dictionaries = torch.randn(7, 6), torch.randn(3, 6, 6)

    def loss(dictionary, tokens):
        return torch.func.functional_call(ista, {"dictionary": dictionary}, (tokens,)).square().sum()

    actual = torch.func.vmap(torch.func.grad(loss), (0, None))(dictionaries, tokens)
    expected = torch.stack([torch.func.grad(loss)(dictionary, tokens) for dictionary in dictionaries])
    torch.testing.assert_close(actual, expected)
    ista.eval()
    with torch.no_grad():
        stacked = torch.func.vmap(loss, (0, None))(dictionaries, tokens)
    torch.testing.assert_close(stacked, torch.stack([loss(dictionary, tokens) for dictionary in dictionaries]))


@pytest.mark.parametrize("num_tokens", [4, 40])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_step(num_tokens, dynamic):
    torch.compiler.reset()
    ista = make_ista(12)
    tokens = torch.randn(2, num_tokens, 12, requires_grad=True)
    compiled = torch.compile(ista, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (tokens, torch.cat([tokens, tokens]).detach().requires_grad_()):
        expected = value_and_gradients(ista, batch, ista.dictionary)
        torch.testing.assert_close(value_and_gradients(compiled, batch, ista.dictionary), expected)


def test_export_is_for_any_batch_size():
    ista = make_ista(12).eval()
    program = torch.export.export(ista, (torch.randn(2, 5, 12),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch_size in (1, 3, 50):
        tokens = torch.randn(batch_size, 5, 12)
        torch.testing.assert_close(program.module()(tokens), ista(tokens))


@pytest.mark.parametrize("grad", [False, True])
def test_traces_of_torch_script_follow_their_weights(config, pixel_values, grad):
    """They cannot record custom functions, and would freeze what is kept."""
    model = CrateMaeForPreTraining(config).eval()
    noise = torch.rand(2, 16)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and warns of every shape that it reads
        model(pixel_values, noise=noise)
        traced = torch.jit.trace(Logits(model), (pixel_values, noise), check_trace=False)
        torch.testing.assert_close(traced(pixel_values, noise), model(pixel_values, noise=noise).logits)
        with torch.no_grad():
            model.crate_mae.layers[0].ista.dictionary.mul_(0.5)
        torch.testing.assert_close(traced(pixel_values, noise), model(pixel_values, noise=noise).logits)


class Logits(nn.Module):
    """The model as TorchScript takes it: tensors in, a tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, noise):
        return self.model(pixel_values, noise=noise).logits


# --- what is kept in inference


@pytest.fixture
def ista() -> CrateISTA:
    return make_ista(8).eval()


TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def assert_follows_its_weights(ista: CrateISTA) -> None:
    dictionary = ista.dictionary.detach()
    with torch.no_grad():
        expected = naive_ista_step(TOKENS.to(dictionary.dtype), dictionary, ista.step_size, ista.threshold)
        tolerance = 1e-5 if dictionary.dtype == torch.float32 else 3e-2
        torch.testing.assert_close(ista(TOKENS.to(dictionary.dtype)), expected, atol=tolerance, rtol=tolerance)


def set_data(ista):
    ista.dictionary.data = torch.randn(8, 8)


def write_through_data(ista):
    ista.dictionary.data.mul_(0.5)


def write_through_numpy(ista):
    ista.dictionary.detach().numpy()[0, 3] += 1


def step_of_an_optimizer(ista):
    ista.train()(TOKENS).sum().backward()
    torch.optim.AdamW(ista.parameters(), lr=0.1).step()
    ista.eval()


def load(ista, assign=False):
    ista.load_state_dict({"dictionary": torch.randn(8, 8)}, assign=assign)


def change_step_size(ista):
    ista.step_size = 0.3


@pytest.mark.parametrize(
    "change",
    [
        set_data,
        write_through_data,
        write_through_numpy,
        step_of_an_optimizer,
        load,
        lambda ista: load(ista, assign=True),
        change_step_size,
        CrateISTA.bfloat16,
        lambda ista: ista.half().float(),
        lambda ista: torch.nn.utils.parametrizations.orthogonal(ista, "dictionary"),
    ],
)
def test_new_weights_are_seen(ista, change):
    assert_follows_its_weights(ista)
    change(ista)
    assert_follows_its_weights(ista)


def test_autocast_does_not_spoil_what_is_kept(ista):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ista(TOKENS)
    assert_follows_its_weights(ista)


def test_inference_mode_does_not_leak_into_training(ista):
    with torch.inference_mode():
        ista(TOKENS)
    expected = torch.autograd.grad(
        naive_ista_step(TOKENS, ista.dictionary, ista.step_size, ista.threshold).sum(), ista.dictionary
    )
    for mode in (True, False):
        gradient = torch.autograd.grad(ista.train(mode)(TOKENS).sum(), ista.dictionary)
        torch.testing.assert_close(gradient, expected)
    assert_follows_its_weights(ista)  # a tensor of inference mode, used outside it


def test_nothing_is_kept_in_training(ista):
    ista.train()(TOKENS).sum().backward()
    with torch.no_grad():
        ista(TOKENS)
    assert ista.dictionary not in _folded_dictionaries


def test_nothing_travels_and_nothing_stays_behind(config, pixel_values, tmp_path):
    model = CrateMaeForPreTraining(config).eval()

    def size(model) -> int:
        torch.save(model, buffer := io.BytesIO())
        return len(buffer.getvalue())

    gc.collect()  # models of tests before
    before, names, kept = size(model), model.state_dict().keys(), len(_folded_dictionaries)
    with torch.no_grad():
        model(pixel_values)
    assert len(_folded_dictionaries) == kept + config.num_hidden_layers
    assert size(model) == before
    assert model.state_dict().keys() == names
    model.save_pretrained(tmp_path)
    double = copy.deepcopy(model)
    assert all(layer.ista.dictionary not in _folded_dictionaries for layer in double.crate_mae.layers)
    del model
    gc.collect()
    assert len(_folded_dictionaries) == kept


def test_moving_averages_written_through_data(config, pixel_values):
    """An exponential moving average of the weights, evaluated after every update."""
    model, average = CrateMaeModel(config).eval(), CrateMaeModel(config).eval()
    for _ in range(2):
        for parameter, source in zip(average.parameters(), model.parameters(), strict=True):
            parameter.data.lerp_(source.data, 0.5)
        with torch.no_grad():
            kept = average(pixel_values).last_hidden_state
        torch.testing.assert_close(kept, average(pixel_values).last_hidden_state, atol=1e-5, rtol=1e-5)
