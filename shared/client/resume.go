package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
)

// Resumed is where a connection stands that came back.
type Resumed struct {
	// Resumed: what was missed was given, but for the rooms that are TooFar; there, load the history.
	Resumed bool     `json:"resumed"`
	TooFar  []string `json:"too_far"`
}

// Redial ends a connection, if it has not ended yet, and makes another that goes on where it was, at this or another
// gateway (url; empty: the same). It may be called again when it fails. Each event comes once: what came already is
// dropped. Where there was no mark to go on from, Resumed of the new one says false.
func (c *Client) Redial(ctx context.Context, url string) (*Client, error) {
	c.Close()
	o := c.options
	if o.Resume, o.Session = c.Mark(), cmp.Or(c.Session(), o.Session); url != "" {
		o.URL = url
	}
	next, err := dial(ctx, o, c.had())
	if err == nil {
		return next, nil
	}
	if next != nil { // it may have been given a part
		maps.Copy(c.seen, next.seen)
	}
	return nil, err
}

// had is the newest version of each stream, of a connection that has ended and those that it followed.
func (c *Client) had() map[string]int64 {
	all := map[string]int64{}
	maps.Copy(all, c.before)
	maps.Copy(all, c.seen) // only newer ones are in there
	return all
}

// resume says what this connection follows, and returns when what was missed has come.
func (c *Client) resume(ctx context.Context) error {
	r, err := c.Request(ctx, map[string]any{"type": "resume",
		"data": map[string]any{"at": c.options.Resume, "session": c.options.Session, "rooms": c.options.Rooms}})
	if err != nil {
		return err
	}
	var stands Resumed
	if err := json.Unmarshal(r.Data, &stands); err != nil {
		return fmt.Errorf("where it stands: %w", err)
	}
	c.resumed = &stands
	return nil
}

// Mark is the newest mark: up to it this connection, and those it follows, were given everything. Empty: there is none.
func (c *Client) Mark() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mark
}

// Session is what the connection, and those that it follows and that follow it, are known as to their user.
func (c *Client) Session() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

func (c *Client) marked(mark string) {
	c.mu.Lock()
	c.mark = mark
	c.mu.Unlock()
	if c.options.OnMark != nil {
		c.options.OnMark(mark)
	}
}

// Resumed says where a connection stands that was made with a mark; false for others.
func (c *Client) Resumed() (Resumed, bool) {
	if c.resumed == nil {
		return Resumed{}, false
	}
	return *c.resumed, true
}

// event hands an event on, unless the connection that this one follows had it.
func (c *Client) event(e Event) {
	if had, follows := c.before[e.Stream]; follows && e.Version <= had {
		return
	}
	c.seen[e.Stream] = max(c.seen[e.Stream], e.Version)
	if c.options.OnEvent != nil {
		c.options.OnEvent(e)
	}
}
