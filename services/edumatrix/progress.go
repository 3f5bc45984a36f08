package edumatrix

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

const (
	barWidth  = 30
	barEvery  = 50 * time.Millisecond
	lineEvery = 2 * time.Second
)

// progress displays the progress of an operation. On a terminal it draws a bar. To any other output it writes lines, at
// most one every 2 s for each step.
type progress struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	step  string
	shown time.Time
	drawn bool
}

func newProgress(t Terminal) *progress {
	return &progress{out: t.Err, terminal: isTerminal(t.Err) && t.Getenv("TERM") != "dumb", now: time.Now}
}

// at displays the position that a step has reached, and the position at which the step ends. It displays one step at
// most once in barEvery (on a terminal) or lineEvery, except that a bar that has reached its end is always displayed.
func (p *progress) at(step string, position, end catalog.Position) {
	now, every := p.now(), lineEvery
	if p.terminal {
		every = barEvery
	}
	if step == p.step && now.Sub(p.shown) < every && position < end {
		return
	}
	if step == p.step && !p.terminal && position >= end && now.Sub(p.shown) < every {
		return
	}
	p.step, p.shown = step, now
	percent := int64(100)
	if end > 0 {
		percent = int64(100 * min(position, end) / end)
	}
	if !p.terminal {
		fmt.Fprintf(p.out, "%s: %d of %d (%d%%)\n", step, position, end, percent)
		return
	}
	full := int(percent) * barWidth / 100
	fmt.Fprintf(p.out, "\r\x1b[K%-8s [%s%s] %3d%%  %d of %d", step, strings.Repeat("#", full),
		strings.Repeat(".", barWidth-full), percent, position, end)
	p.drawn = true
}

// end ends the line of the bar, so that later output begins on a new line.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.out)
	}
}
