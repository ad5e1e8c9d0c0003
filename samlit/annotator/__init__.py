"""`samlit annotate`: masks by people in the browser, with a model that proposes them (paper section 4)."""
