"""VGG16's features and the perceptual distance, against PyTorch with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from videogen_jax.models import perceptual
from videogen_jax.models.weights import WeightsError

torch = pytest.importorskip("torch")
PLAN = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


def make_torch():
    """torchvision's `vgg16().features` up to the last ReLU, written from the paper's table D."""
    torch.manual_seed(0)
    layers, channels = [], 3
    for width in PLAN:
        if width == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            torch.nn.init.kaiming_normal_(layers[-2].weight)
            torch.nn.init.normal_(layers[-2].bias, std=0.1)
            channels = width
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    features = make_torch()
    file = tmp_path_factory.mktemp("vgg") / "model.safetensors"
    tensors = {f"features.{name}": value.numpy() for name, value in features.state_dict().items()}
    save_file(tensors | {"head.fc.weight": np.zeros((2, 2), np.float32)}, file)
    return features, file


def torch_distance(features, x, y):
    mean, std = (
        torch.tensor(values)[None, :, None, None]
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    a, b = ((frames.permute(0, 3, 1, 2) / 2 + 0.5 - mean) / std for frames in (x, y))
    total = 0
    for i, layer in enumerate(features):
        a, b = layer(a), layer(b)
        if i in (3, 8, 15, 22, 29):  # relu1_2, 2_2, 3_3, 4_3, 5_3
            norm = torch.nn.functional.normalize
            total = total + ((norm(a, dim=1) - norm(b, dim=1)) ** 2).sum(1).mean() / 5
    return total


def frames(seed):
    return np.random.default_rng(seed).uniform(-1, 1, (2, 32, 16, 3)).astype(np.float32)


def test_distance_and_its_gradient_agree_with_pytorch(network):
    features, file = network
    params = perceptual.load_vgg(str(file))
    x, y = frames(0), frames(1)
    ours, gradient = jax.jit(jax.value_and_grad(perceptual.distance, argnums=1))(params, x, y)
    x, y = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)
    theirs = torch_distance(features, x, y)
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-4)
    scale = np.abs(x.grad.numpy()).max()
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-3 * scale)


def test_equal_images_have_distance_0_and_finite_gradients():
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), perceptual.abstract_vgg())
    x = frames(0)
    value, gradient = jax.value_and_grad(perceptual.distance, argnums=1)(params, x, x)
    assert value == 0 and np.isfinite(gradient).all()


def test_other_weights_are_rejected(network, tmp_path):
    _, file = network
    save_file(
        {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(WeightsError, match="do not fit VGG16: 25 missing"):
        perceptual.load_vgg(str(tmp_path / "a.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        perceptual.load_vgg(str(tmp_path))
    assert set(perceptual.drop_classifier({"features.0.weight": 1, "classifier.0.bias": 2})) == {
        "features.0.weight"
    }
