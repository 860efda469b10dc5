"""A self-hosted gateway for home and small-office LLM servers.

What kind of class a value gets: a dataclass with slots, frozen where it never changes. What is made anew for
every request, and then hardly written to, is a msgspec.Struct: it is made in a third of the time, a tenth of
what a frozen dataclass takes; with `gc=False` where nothing in it can lead back to it. What lives through a
request and is written to again and again, as an Entry or an Exchange, is a dataclass all the same: to set an
attribute of a Struct takes four times as long. What is looked up as a whole is a NamedTuple, which is hashed
in C. Settings are pydantic's models, and JSON of which few fields count is decoded into a msgspec.Struct.
"""

__version__ = "0.1.0"
