"""What the HTML reports share: the page, charts, thumbnails and statistics."""
