"""ONNX's graphs: their nodes, and what makes and takes each value."""

import dataclasses
from collections.abc import Mapping

from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.weights.protobuf import Message

MAX_DEPTH = 16

# Fields of NodeProto and AttributeProto.
_INPUT, _OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _F, _I, _S, _T, _G, _INTS = 1, 2, 3, 4, 5, 6, 8


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
      op: its type, such as ``Conv``.
      name: its own name, often empty.
      inputs: names of the values that it takes; an empty one is left out.
      outputs: names of the values that it makes.
      attributes: name -> AttributeProto.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Message]

    @classmethod
    def read(cls, message: Message) -> "Node":
        """Reads a NodeProto."""
        attributes = message.messages(_ATTRIBUTE)
        return cls(
            op=message.text(_OP_TYPE),
            name=message.text(_NODE_NAME),
            inputs=message.texts(_INPUT),
            outputs=message.texts(_OUTPUT),
            attributes={attribute.text(_ATTRIBUTE_NAME): attribute for attribute in attributes},
        )

    def input(self, index: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def integers(self, name: str, default: list[int]) -> list[int]:
        """An attribute that is a list of integers."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.integers(_INTS).tolist()

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return self.attributes[name].integer(_I) if name in self.attributes else default

    def floating(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return self.attributes[name].floating(_F, default) if name in self.attributes else default

    def text(self, name: str) -> str:
        """An attribute that is a string; empty if there is none."""
        return self.attributes[name].text(_S) if name in self.attributes else ""

    def tensors(self, name: str) -> list[Message]:
        """An attribute that is a TensorProto."""
        return self.attributes[name].messages(_T) if name in self.attributes else []

    def graphs(self) -> list[Message]:
        """The graphs inside the node, such as a condition's branches."""
        return [graph for each in self.attributes.values() for graph in each.messages(_G)]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes of a graph.

    Attributes:
      nodes: in the order in which they run.
      values: name -> stored value, or one made from such; filled while the nodes are gone through.
      makers: name of a value -> the node that makes it.
      users: name of a value -> the nodes that take it.
    """

    nodes: list[Node]
    values: dict[str, StoredArray]
    makers: dict[str, Node]
    users: dict[str, list[Node]]

    @classmethod
    def of(cls, nodes: list[Node], values: dict[str, StoredArray]) -> "Graph":
        """Finds what makes and what takes each value."""
        makers = {output: node for node in nodes for output in node.outputs}
        users: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return cls(nodes, values, makers, users)

    def only_user(self, node: Node) -> Node | None:
        """The node that takes a node's first output, if nothing else does."""
        users = self.users.get(node.outputs[0], []) if node.outputs else []
        return users[0] if len(users) == 1 else None

    def origin(self, name: str) -> str:
        """The stored value that a value was made from."""
        for _ in range(MAX_DEPTH):
            if name not in self.makers or not self.makers[name].inputs:
                break
            name = self.makers[name].inputs[0]
        return name
