"""The style sheet of a page: calm in the light, in the dark, on a phone and in print.

Pictures are drawn in Okabe and Ito's colours, which most kinds of colour blindness tell apart; the
two palest are darker here, all are lighter in the dark.
"""

from __future__ import annotations

LIGHT = """
--paper:#fdfdfc;--ink:#1b1c1e;--soft:#5b5e63;--rule:#dcdcd8;--faint:#f3f3f0;
--link:#00588c;--good:#00684a;--warn:#9a3d00;
--c0:#0072b2;--c1:#c85400;--c2:#00805d;--c3:#b5588c;--c4:#9a6b00;--c5:#2379ad;--c6:#1b1c1e;
"""
DARK = """
--paper:#141619;--ink:#e7e7e4;--soft:#a4a7ac;--rule:#33363b;--faint:#1d2024;
--link:#7cc0ee;--good:#5fd3a8;--warn:#ffab73;
--c0:#58b0ea;--c1:#ff9a5a;--c2:#43cda0;--c3:#e6a3ca;--c4:#f0bd4b;--c5:#97d2f6;--c6:#e7e7e4;
"""

# As drawn -> as shown.
PICTURES = {
    "#0072b2": "c0",
    "#d55e00": "c1",
    "#009e73": "c2",
    "#cc79a7": "c3",
    "#e69f00": "c4",
    "#56b4e9": "c5",
    "#000000": "c6",
    "#777777": "soft",
}
RECOLOUR = "".join(
    f'.plot [{what}="{drawn}"]{{{what}:var(--{shown})}}'
    for what in ("stroke", "fill")
    for drawn, shown in PICTURES.items()
)

BASE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer,nav{max-width:74rem;margin:0 auto;padding:0 1.5rem}
a{color:var(--link);text-underline-offset:.15em;text-decoration-thickness:.06em}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
h1,h2,h3{line-height:1.2;font-weight:650;letter-spacing:-.011em;text-wrap:balance;
overflow-wrap:anywhere}
header{padding-top:3.2rem}
h1{font-size:clamp(1.9rem,1.3rem + 2.4vw,2.9rem);margin:.1rem 0 .4rem}
h2{font-size:1.32rem;margin:0 0 .9rem}
h3{font-size:1rem;margin:2rem 0 .5rem}
.kicker,.lead,.note,figcaption,.caption,footer,dt,nav{color:var(--soft)}
.kicker{margin:0;font-size:.82rem;letter-spacing:.06em}
.lead{margin:0;font-size:1.02rem;max-width:52rem}
.note{font-size:.88rem;max-width:52rem}
.state{font-weight:600;color:var(--ink)}
.good{color:var(--good)}.warn{color:var(--warn)}
nav{padding-top:1.1rem;font-size:.88rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.15rem;list-style:none;margin:0;padding:.65rem 0;
border-block:1px solid var(--rule)}
section{padding:2.3rem 0 0}
p{margin:.5rem 0;overflow-wrap:anywhere}
.alert{border-left:3px solid var(--warn);padding:.1rem 0 .1rem .9rem;margin:1rem 0;max-width:52rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr));
gap:1.6rem 2.2rem}
.tile{min-width:0}
.tile.first{grid-column:1/-1}
.tile h3{margin:0 0 .15rem;font-size:.86rem;font-weight:500;color:var(--soft);letter-spacing:0}
.tile p{margin:.1rem 0;font-size:.9rem;overflow-wrap:anywhere}
.figure{font-size:1.5rem;font-weight:600;letter-spacing:-.015em;line-height:1.25;
font-variant-numeric:tabular-nums}
.tile p.figure{font-size:1.5rem}
.tile.first p.figure{font-size:clamp(2rem,1.3rem + 3.2vw,3.3rem);font-weight:650;line-height:1.15}
.figure small{font-size:.5em;font-weight:500;color:var(--soft);letter-spacing:0}
.meter{display:block;width:100%;height:.5rem;margin:.45rem 0}
.meter .all{fill:var(--rule)}.meter .part{fill:var(--c0)}.meter .over{fill:var(--c1)}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr));
gap:1.8rem 2.4rem;margin-top:1rem;align-items:start}
figure{margin:0;min-width:0}
figure.broad{grid-column:1/-1}
figure.broad .wide{margin:0}
figure.broad svg{min-width:48rem;max-width:100%}
#search p{font-size:.92rem}
figcaption{font-size:.86rem;margin:0 0 .5rem;max-width:40rem}
figcaption b{color:var(--ink);font-weight:600}
.plot>svg{width:100%}
.plot svg{display:block;height:auto;overflow:visible;stroke-linejoin:round;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.plot text{fill:var(--ink);font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.4rem;list-style:none;margin:.9rem 0 0;padding:0;
font-size:.9rem}
.legend li{display:flex;gap:.5rem;align-items:center;min-width:0;overflow-wrap:anywhere}
.legend svg{flex:none;width:1.9rem;height:.7rem}
.wide{overflow-x:auto;margin:0 0 1rem;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;min-width:100%}
.caption{font-size:.88rem;margin:1rem 0 .3rem;max-width:52rem}
th,td{padding:.38rem .8rem .38rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--rule);unicode-bidi:isolate}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;color:var(--soft);vertical-align:bottom;border-bottom-color:var(--soft)}
tbody th{font-weight:600;min-width:8rem;max-width:20rem;overflow-wrap:break-word}
.n{text-align:right;white-space:nowrap}
td{white-space:nowrap}
td.t{white-space:normal;min-width:13rem;max-width:26rem;overflow-wrap:anywhere}
tbody th.t{min-width:11rem}
tbody th small{display:block;font-size:.9em;line-height:1.4;font-weight:400;color:var(--soft)}
tr.marked th,tr.marked td{background:var(--faint)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:.9rem 2rem;
margin:1rem 0}
dt{font-size:.82rem}
dd{margin:0;font-size:.92rem;overflow-wrap:anywhere;font-variant-numeric:tabular-nums;
unicode-bidi:isolate}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
font-size:.8rem}
pre{background:var(--faint);padding:.8rem 1rem;overflow:auto;max-height:28rem;margin:.5rem 0;
line-height:1.45;tab-size:4}
details{border-bottom:1px solid var(--rule);padding:.1rem 0}
summary{cursor:pointer;padding:.4rem 0;overflow-wrap:anywhere;font-size:.92rem}
summary b{font-weight:600}
footer{margin-top:3rem;padding-top:1rem;padding-bottom:3rem;font-size:.85rem}
@media screen and (max-width:40rem){
html{font-size:15px}
main,header,footer,nav{padding-left:1rem;padding-right:1rem}
header{padding-top:1.8rem}section{padding-top:1.9rem}
}
"""

# A page of paper shows no scroll bars and opens nothing: boxes are as wide as they need to be, and
# instead of links to the logs there are their paths in the table of runs.
PRINT = """
@page{size:A4;margin:14mm 12mm}
html{font-size:9pt}
main,header,footer,nav{max-width:none;padding:0}
header{padding-top:0}nav,.skip{display:none}
a{color:inherit;text-decoration:none}
section{padding-top:1.2rem}
h2,h3,figcaption,.caption,.legend,h2+.note{break-after:avoid}
figure,.tile,tr,dl>div{break-inside:avoid}
.plots{grid-template-columns:1fr 1fr;gap:.8rem 1.4rem}
.wide{overflow:visible}figure.broad svg{min-width:0}
table{font-size:6.6pt}th,td{padding:.16rem .4rem .16rem 0}
tbody th,tbody th.t,td.t{min-width:0}dl{grid-template-columns:1fr 1fr 1fr}td,.n{white-space:normal}
pre{max-height:none;white-space:pre-wrap;overflow-wrap:anywhere;font-size:6.5pt}
#logs{display:none}
a[data-path]{font-size:0}
a[data-path]::after{content:attr(data-path);font-size:6.6pt}
#runs td:last-child{overflow-wrap:anywhere;min-width:26mm}
"""

CSS = (
    f":root{{color-scheme:light dark;{LIGHT}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    f"{BASE}{RECOLOUR}@media print{{{PRINT}}}"
    ".skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem}"
).replace("\n", "")
