"""A page as its reader sees it, and names that would do harm in it."""

from html.parser import HTMLParser

HOSTILE = "<script>alert('x')</script>\"'&amp;<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Every tag with its attributes, and all text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data):
        if self.open not in ("script", "style"):
            self.text.append(data)

    def handle_endtag(self, tag):
        self.open = None

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]
