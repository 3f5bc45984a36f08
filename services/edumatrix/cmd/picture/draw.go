package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"time"
	"unicode/utf8"
)

const (
	width, lineHeight, top = 560, 20, 52 // the width, line height and upper margin of a terminal, in pixels
	maxColumns             = 66
	hold                   = 4 * time.Second // the time for which the last picture stays before the animation repeats
)

// draw returns an SVG of terminals side by side. Each line appears at the time at which it was recorded. The animations
// of all terminals have the same length.
func draw(terminals ...*terminal) []byte {
	var end time.Duration
	rows := 0
	for _, t := range terminals {
		rows = max(rows, len(t.lines))
		for _, l := range t.lines {
			end = max(end, l.at)
		}
	}
	end += hold
	height := top + rows*lineHeight + 16
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" `+
		`aria-label="Two terminals in which alice and bob talk through EDU Matrix Interlinked">
<style>
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #d7dde5; white-space: pre }
.title { fill: #8b98a9 } .typed { fill: #7fd1b9 }
.line { opacity: 0; animation: %.1fs step-end infinite }
@media (prefers-reduced-motion: reduce) { .line { animation: none; opacity: 1 } }
`, len(terminals)*(width+12)-12, height, end.Seconds())
	for i, t := range terminals {
		for n, l := range t.lines {
			at := 100 * l.at.Seconds() / end.Seconds()
			fmt.Fprintf(&b, "#t%dl%d { animation-name: a%[1]dl%[2]d } @keyframes a%[1]dl%[2]d { 0%% { opacity: 0 } %.2[3]f%%, 100%% { opacity: 1 } }\n",
				i, n, at)
		}
	}
	b.WriteString("</style>\n")
	for i, t := range terminals {
		left := i * (width + 12)
		fmt.Fprintf(&b, `<rect x="%d" y="0" width="%d" height="%d" rx="8" fill="#1b2129"/>`+"\n", left, width, height)
		for n, colour := range []string{"#e8695f", "#e0b04c", "#67bd63"} {
			fmt.Fprintf(&b, `<circle cx="%d" cy="18" r="5.5" fill="%s"/>`+"\n", left+18+18*n, colour)
		}
		fmt.Fprintf(&b, `<text class="title" x="%d" y="23" text-anchor="middle">%s</text>`+"\n", left+width/2, t.title)
		for n, l := range t.lines {
			class := "line"
			if l.typed {
				class += " typed"
			}
			fmt.Fprintf(&b, `<text class="%s" id="t%dl%d" x="%d" y="%d">%s</text>`+"\n", class, i, n, left+16, top+n*lineHeight,
				escaped(clipped(l.text)))
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // writing to a buffer cannot fail
	return b.String()
}

// clipped cuts a line at the width of the terminal.
func clipped(text string) string {
	if utf8.RuneCountInString(text) <= maxColumns {
		return text
	}
	return string([]rune(text)[:maxColumns-1]) + "…"
}
