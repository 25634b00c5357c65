"""Building blocks of the HTML reports: templates, charts, thumbnails and statistics."""
