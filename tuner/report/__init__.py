"""The report room: reads finished files, writes report.json, report.md and one self-contained report.html."""
