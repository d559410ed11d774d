"""docs/grpcurl.md holds what the daemon's messages are now: each request and each answer on it is read as the message that it is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from service_harness import Client, Daemon, json_values

PAGE = (Path(__file__).resolve().parents[2] / "docs/grpcurl.md").read_text()
BLOCKS = re.findall(r"```\n\$ (grpcurl .*?)\n```", PAGE, re.DOTALL)
FILES = {"request.json": re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)[0]}


def command_and_output(block: str) -> tuple[list[str], str]:
    """A command, which may go over several lines, and what follows."""
    command, _, output = re.sub(r" \\\n\s*", " ", block).partition("\n")
    return shlex.split(command), output


def called() -> dict[str, list[tuple[str, str]]]:
    """By method: each request and output on the page."""
    calls: dict[str, list[tuple[str, str]]] = {}
    for block in BLOCKS:
        words, output = command_and_output(block)
        if "list" in words or "describe" in words:
            continue
        (method,) = [word for word in words if re.fullmatch(r"[\w.]+/\w+", word)]
        request = words[words.index("-d") + 1] if "-d" in words else "{}"
        if request == "@":
            request = FILES[words[words.index("<") + 1]]
        calls.setdefault(method, []).append((request, output))
    return calls


@pytest.fixture(scope="module")
def methods(service_daemon: Daemon) -> dict[str, MethodDescriptor]:
    """What the daemon's services have, by reflection."""
    with Client(service_daemon.endpoint) as client:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(client.channel))
        services = [
            pool.FindServiceByName(name)
            for name in ("piecewised.v1.AdminService", "piecewised.v1.CompileService", "grpc.health.v1.Health")
        ]
    return {f"{service.full_name}/{method.name}": method for service in services for method in service.methods}


def names_of(descriptor: Descriptor, seen: set[str]) -> set[str]:
    """The JSON names of a message's fields, and of those of the messages in it."""
    if descriptor.full_name in seen:
        return set()
    seen.add(descriptor.full_name)
    names = {field.json_name for field in descriptor.fields}
    for field in descriptor.fields:
        if field.message_type is not None:
            names |= names_of(field.message_type, seen)
    return names


def test_every_admin_method_is_on_the_page_and_every_call_is_of_a_method(methods: dict[str, MethodDescriptor]) -> None:
    admin = {name for name in methods if "AdminService" in name}
    assert admin and admin <= set(called())
    assert set(called()) <= set(methods)


def test_requests_and_answers_are_the_messages_that_they_are_said_to_be(methods: dict[str, MethodDescriptor]) -> None:
    for name, calls in called().items():
        method = methods[name]
        for request, output in calls:
            json_format.Parse(request, message_factory.GetMessageClass(method.input_type)())
            if "\n...\n" in output:
                shown = set(re.findall(r'^ *"(\w+)":', output, re.MULTILINE))
                assert shown and shown <= names_of(method.output_type, set())
                continue
            answers, rest = json_values(output)
            for answer in answers:
                json_format.ParseDict(answer, message_factory.GetMessageClass(method.output_type)())
            # An empty answer is `{}`; what else is there is an error.
            assert answers or "ERROR:" in rest, (name, output)
