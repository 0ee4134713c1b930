"""The fixture that fails tests on undeclared warnings is itself tested."""

from __future__ import annotations

import logging

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.expected_warnings("the disk is gone")  # the inner runs log in this very process
CONFTEST = "from tests.conftest import *\nfrom tests.conftest import _no_undeclared_warning\n"


def outcome(pytester: pytest.Pytester, body: str) -> dict[str, int]:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(f"import logging, pytest\nlog = logging.getLogger('cachefs.x')\n{body}")
    return pytester.runpytest("-p", "no:cacheprovider").parseoutcomes()


def test_undeclared_warning_fails_the_test(pytester: pytest.Pytester) -> None:
    assert outcome(pytester, "def test_it():\n    log.warning('the disk is gone')\n") == {"passed": 1, "errors": 1}


def test_declared_warning_is_fine(pytester: pytest.Pytester) -> None:
    body = "@pytest.mark.expected_warnings('disk is')\ndef test_it():\n    log.warning('the disk is gone')\n"
    assert outcome(pytester, body) == {"passed": 1}


def test_fixture_declares_too(pytester: pytest.Pytester) -> None:
    body = "def test_it(expected_warnings):\n    expected_warnings.append('gone')\n    log.error('the disk is gone')\n"
    assert outcome(pytester, body) == {"passed": 1}


def test_info_needs_no_declaration() -> None:
    logging.getLogger("cachefs.x").info("all is well")
