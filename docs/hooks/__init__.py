"""What mkdocs does beside turning docs/ into pages: pages from code, and links that leave docs/.

| file | holds |
|---|---|
| `site.py` | the events that mkdocs calls |
| `links.py` | which file of the project stands where in the site |
| `commands.py`, `settings.py`, `rest.py`, `prometheus.py` | one generated page each |
| `fields.py` | a JSON Schema as a table, for settings and messages |
"""
