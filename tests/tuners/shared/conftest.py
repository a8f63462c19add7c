import pytest

from tests.tuners.shared.methods import METHODS, VARIANTS


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture
def bert(architectures):
    return architectures["bert"]
