"""Pictures as SVG inside a page: the style sheet gives colours, so that they follow light and dark; text in them is escaped here."""
