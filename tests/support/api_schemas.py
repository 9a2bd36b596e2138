"""200 schemas as real APIs have them, made small: 50 resources, each in four shapes.

A resource is one line: its name, then `field:type`. A `?` makes a field optional, `a|b` an enum,
`[type]` a list of at most two. The shapes are those that clients send: what a tool is called with,
a change of some fields, a page of a list, and an event of one of two kinds, as pydantic writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RESOURCES = """
invoice id:id total:cents currency:eur|usd|gbp paid:bool due:date lines:[line]
line sku:word count:small price:cents
payment id:uuid amount:cents method:card|bank|cash captured:bool note:text?
refund payment:uuid amount:cents reason:duplicate|fraud|asked
customer id:id name:word email:mail tier:free|pro|team tags:[word]
address street:text zip:zip city:word country:cc
shipment id:id weight:ratio fragile:bool from:cc to:cc
parcel length:small width:small height:small kind:box|tube|letter
order id:id items:[line] state:open|paid|sent|closed gift:bool?
cart items:[sku] coupon:code? total:cents
sku code:code stock:small price:cents
product name:word price:cents stock:small colours:[red|green|blue]
review stars:stars title:text? verified:bool
coupon code:code percent:percent expires:date
subscription plan:monthly|yearly seats:small renews:bool trial:date?
user id:uuid login:word admin:bool last_seen:time?
group name:word members:[login] open:bool
login user:word at:time ok:bool
session token:hex user:id expires:time
key name:word scopes:[read|write|admin] revoked:bool
role name:word level:stars grants:[code]
audit actor:login action:create|update|delete at:time
ticket id:id title:text priority:low|normal|high assignee:login? open:bool
comment author:word body:text likes:small
label name:word colour:hex
issue number:small title:text labels:[label] state:open|closed
pull number:small draft:bool base:branch head:branch
branch name:word protected:bool
commit sha:hex message:text files:small
build id:small status:queued|running|passed|failed duration:ratio?
release tag:version notes:text? assets:[asset]
asset name:word bytes:small kind:wheel|source
host name:word address:ip cores:small up:bool
volume name:word gib:small mounted:bool host:host?
metric name:word value:ratio unit:ms|bytes|count
alert metric:word above:ratio severity:info|warn|page
pod name:word restarts:small phase:pending|running|failed
job id:uuid queue:word attempts:small done:bool
file path:path bytes:small mode:read|write
folder path:path children:[file]
place name:word at:point open:bool?
trip from:place to:place mode:walk|bike|train
weather city:word celsius:celsius sky:clear|cloud|rain wind:ratio
flight number:flight gate:zip? delayed:bool
booking code:code nights:small guests:stars paid:bool
room number:small beds:stars view:sea|yard|street
event title:text day:date guests:[mail] online:bool
message to:mail subject:text urgent:bool
song title:text seconds:small stars:stars?
recipe name:word minutes:small steps:[text] vegan:bool
""".strip().splitlines()

TYPES: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "pattern": "^[a-z]{2}_[0-9]{4}$"},
    "uuid": {"type": "string", "format": "uuid"},
    "word": {"type": "string", "minLength": 1, "maxLength": 8},
    "text": {"type": "string", "maxLength": 12},
    "code": {"type": "string", "pattern": "^[A-Z0-9]{4}$"},
    "hex": {"type": "string", "pattern": "^[0-9a-f]{6}$"},
    "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
    "cc": {"type": "string", "minLength": 2, "maxLength": 2, "pattern": "^[A-Z]+$"},
    "mail": {"type": "string", "pattern": "^[a-z]{1,6}@[a-z]{1,5}\\.(com|org)$"},
    "version": {"type": "string", "pattern": "^v[0-9]\\.[0-9]{1,2}$"},
    "flight": {"type": "string", "pattern": "^[A-Z]{2} ?[0-9]{1,4}$"},
    "path": {"type": "string", "pattern": "^(/[a-z]{1,5}){1,3}$"},
    "ip": {"type": "string", "format": "ipv4"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "bool": {"type": "boolean"},
    "small": {"type": "integer", "minimum": 0, "maximum": 999},
    "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    "percent": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 100},
    "cents": {"type": "integer", "minimum": 0, "maximum": 10_000, "multipleOf": 5},
    "celsius": {"type": "integer", "minimum": -40, "maximum": 50},
    "ratio": {"type": "number", "minimum": 0, "maximum": 1},
    "point": {
        "type": "array",
        "prefixItems": [
            {"type": "integer", "minimum": -90, "maximum": 90},
            {"type": "integer", "minimum": -180, "maximum": 180},
        ],
        "items": False,
        "minItems": 2,
    },
}


def _type(words: str, depth: int) -> dict[str, Any]:
    if words.startswith("["):
        items = _type(words[1:-1], depth)
        return {"type": "array", "items": items, "maxItems": 2}
    if "|" in words:
        return {"enum": words.split("|")}
    if words in TYPES:
        return TYPES[words]
    if depth:
        return _resource(_BY_NAME[words], depth - 1)
    return {"type": "null"}


def _resource(line: str, depth: int) -> dict[str, Any]:
    """Return the closed object of a line; resources within it to that depth."""
    fields = dict(part.split(":") for part in line.split()[1:])
    return {
        "type": "object",
        "properties": {
            name: _type(words.removesuffix("?"), depth) for name, words in fields.items()
        },
        "required": [name for name, words in fields.items() if not words.endswith("?")],
        "additionalProperties": False,
    }


_BY_NAME = {line.split()[0]: line for line in RESOURCES}


def _change(whole: dict[str, Any]) -> dict[str, Any]:
    """Ask for every field, null where it stays: the only way that strict schemas leave."""
    fields = {
        name: {"anyOf": [schema, {"type": "null"}]} for name, schema in whole["properties"].items()
    }
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def _page(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    return {
        "$defs": {name: whole},
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": f"#/$defs/{name}"}, "maxItems": 2},
            "next": {"type": ["string", "null"], "maxLength": 4},
        },
        "required": ["object", "data", "next"],
        "additionalProperties": False,
    }


def _event(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    """Describe an event as a union that its `type` tells apart, with titles and defaults."""
    made = {
        "title": "Made",
        "type": "object",
        "properties": {
            "type": {"const": f"{name}.made", "title": "Type", "default": f"{name}.made"},
            name: {"$ref": "#/$defs/Whole"},
        },
        "required": ["type", name],
        "additionalProperties": False,
    }
    gone = {
        "title": "Gone",
        "type": "object",
        "properties": {"type": {"const": f"{name}.gone"}, "id": TYPES["id"]},
        "required": ["type", "id"],
        "additionalProperties": False,
    }
    return {
        "title": "Event",
        "description": f"What happened to a {name}",
        "$defs": {"Whole": whole, "Made": made, "Gone": gone},
        "anyOf": [{"$ref": "#/$defs/Made"}, {"$ref": "#/$defs/Gone"}],
    }


def _schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for line in RESOURCES:
        name, whole = line.split()[0], _resource(line, 1)
        yield f"{name}, whole", whole
        yield f"{name}, a change", _change(whole)
        yield f"{name}, a page", _page(name, whole)
        yield f"{name}, an event", _event(name, whole)


API_SCHEMAS = dict(_schemas())
"""By name. A compact text that follows one ends by itself after some ten to two hundred tokens."""
