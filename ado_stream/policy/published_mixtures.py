"""Published mixtures by name, for `make_policy("fixed", prior, weights=NAME)`.

"doremi-pile": domain weights that DoReMi's 280M proxy found for The Pile, table 1 of arXiv 2305.10429 (rounded there to
four digits, so that they sum to 1.0001).
"""

PILE_DOREMI = {
    "Pile-CC": 0.6057,
    "PubMed Central": 0.0046,
    "Books3": 0.0224,
    "OpenWebText2": 0.1019,
    "ArXiv": 0.0036,
    "Github": 0.0179,
    "FreeLaw": 0.0043,
    "StackExchange": 0.0153,
    "USPTO Backgrounds": 0.0036,
    "PubMed Abstracts": 0.0113,
    "Gutenberg (PG-19)": 0.0072,
    "OpenSubtitles": 0.0047,
    "Wikipedia (en)": 0.0699,
    "DM Mathematics": 0.0018,
    "Ubuntu IRC": 0.0093,
    "BookCorpus2": 0.0061,
    "EuroParl": 0.0062,
    "HackerNews": 0.0134,
    "YoutubeSubtitles": 0.0502,
    "PhilPapers": 0.0274,
    "NIH ExPorter": 0.0063,
    "Enron Emails": 0.0070,
}

PUBLISHED_MIXTURES = {"doremi-pile": PILE_DOREMI}
