import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.descriptor_score import descriptor_score, prepare, prepare_pca, reference, z_scores


def autoencoders(generator, layers, num, dim, hidden, dtype=torch.float64):
    shapes = [(hidden, dim), (hidden,), (dim, hidden), (dim,)]
    return [torch.randn(layers, num, *shape, generator=generator, dtype=dtype) / shape[-1] ** 0.5 for shape in shapes]


@pytest.mark.parametrize(
    ("layers", "tokens", "num", "dim", "hidden"),
    [(1, 1, 1, 1, 1), (2, 7, 3, 10, 4), (3, 300, 5, 33, 17), (1, 0, 2, 4, 2)],
)
def test_gram_form_matches_the_definition(generator, layers, tokens, num, dim, hidden):
    x = torch.randn(layers, tokens, dim, generator=generator, dtype=torch.float64)
    weights = autoencoders(generator, layers, num, dim, hidden)
    torch.testing.assert_close(descriptor_score(x, prepare(*weights)), reference.descriptor_score(x, *weights))


@settings(max_examples=25, deadline=None)
@given(num=st.integers(1, 6), dim=st.integers(2, 40), tokens=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_pca_matches_the_definition(num, dim, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, _ = torch.randn(2, 2, num, dim, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(2, num, dim, dim // 2, generator=generator, dtype=torch.float64)).Q.mT
    x = torch.randn(2, tokens, dim, generator=generator, dtype=torch.float64)
    expected = reference.descriptor_score(x, basis, -(basis @ mean[..., None])[..., 0], basis.mT, mean)
    torch.testing.assert_close(descriptor_score(x, prepare_pca(mean, basis)), expected)


def test_a_record_inside_the_subspace_scores_zero(generator):
    basis = torch.linalg.qr(torch.randn(1, 1, 8, 3, generator=generator)).Q.mT
    mean = 100 + torch.randn(1, 1, 8, generator=generator)
    inside = mean[0] + torch.randn(5, 3, generator=generator) @ basis[0, 0]
    assert float(descriptor_score(inside[None], prepare_pca(mean, basis)).max()) < 1e-4


def test_strides_and_gradients(generator):
    weights = autoencoders(generator, 2, 3, 6, 4)
    x = torch.randn(6, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: descriptor_score(x.permute(2, 1, 0), prepare(*weights)), x)


def test_a_score_does_not_depend_on_other_descriptors(generator):
    weights = autoencoders(generator, 1, 9, 12, 4, torch.float32)
    x = torch.randn(1, 20, 12, generator=generator)
    alone = descriptor_score(x, prepare(*(w[:, :1] for w in weights)))
    torch.testing.assert_close(descriptor_score(x, prepare(*weights))[:, :1], alone)


def test_z_scores():
    score, mean, std = torch.tensor([[[1.0, 5.0]]]), torch.tensor([[3.0]]), torch.tensor([[2.0]])
    assert z_scores(score, mean, std).tolist() == [[[-1.0, 1.0]]]
    assert z_scores(score, mean, std, two_sided=True).tolist() == [[[1.0, 1.0]]]
