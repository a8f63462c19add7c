"""Result records as tables, figures and one page."""
