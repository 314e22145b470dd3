"""The look of the page: light or dark as the reader's system is, and readable at 400 pixels."""

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --faint: #59636e; --ground: #fff; --card: #f6f8fa; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --faint: #9aa4b0; --ground: #14171b; --card: #1d2126; --line: #3a414a; }
  [style*="stroke: #0072b2"] { stroke: #56b4e9 !important; }
  [style*="fill: #0072b2"] { fill: #56b4e9 !important; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 76rem;
  margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
h1, h2 { line-height: 1.25; }
p { max-width: 60rem; margin: 0.5rem 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: currentColor; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 0.8rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
figcaption { margin-top: 0.4rem; }
figcaption, .protocol { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 0.35rem 1rem 0.35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.facts th { width: 9rem; }
.cards th:first-child, .cards td:first-child { min-width: 10rem; }
.figures { white-space: pre-line; font-variant-numeric: tabular-nums; min-width: 14rem; }
pre { background: var(--card); padding: 0.8rem; overflow-x: auto; font-size: 13px; border-radius: 6px; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 0.75rem; }
  table, tbody, tr, th, td { display: block; width: auto; }
  .cards tr:first-child { display: none; }
  .cards tr, .facts { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
    padding: 0.5rem 0.7rem; margin: 0.5rem 0; }
  th, td { border: 0; padding: 0.1rem 0; }
  .facts th { width: auto; color: var(--faint); font-size: 13px; font-weight: normal; }
  .cards td::before { content: attr(data-name); display: block; color: var(--faint); font-size: 12px; }
}
"""
