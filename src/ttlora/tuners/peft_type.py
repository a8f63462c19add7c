"""New members for PEFT's enumeration of methods."""

from peft.utils import PeftType


def add_peft_type(name: str) -> PeftType:
    """Add ``name`` to `PeftType` as a real member, or return the one that is there.

    PEFT keys its registries and reads saved configs by members of this enumeration, so a plain string would fail in
    places such as ``transformers``' ``load_adapter``; a Python enumeration has no public way to grow.

    Args:
        name: The method's name in capitals.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__dict__.update(__objclass__=PeftType, _sort_order_=len(PeftType))
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member
