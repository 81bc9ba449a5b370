"""Settings of Sphinx for the site; tools/docs.py copies this file beside the prepared sources."""

project = "crypto_lstm"
author = "The crypto_lstm authors"
copyright = "2026 onwards, the crypto_lstm authors"

extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_code_prompt_show = "Show source"
nb_code_prompt_hide = "Hide source"
nb_ipywidgets_js: dict[str, dict] = {}  # no JavaScript of widgets from another host
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure", "myst.header"]

highlight_language = "text"  # of a block that names no language: commands and reports, not Python
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
exclude_patterns: list[str] = []

html_theme = "furo"
html_title = "crypto_lstm"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which a browser refuses from file://
