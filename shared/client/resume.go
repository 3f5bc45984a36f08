package client

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"time"

	"github.com/gorilla/websocket"
)

// Connected is the reply to connect. From this reply on, the client gets every durable event in its rooms.
type Connected struct {
	UserID      string `json:"user_id"`
	SessionID   string `json:"session_id"`
	ResumeToken string `json:"resume_token"`
	// Resumed reports whether the missed events were sent. The missed events of the rooms in NotRecovered were not
	// sent; load the history of these rooms instead.
	Resumed      bool     `json:"resumed"`
	NotRecovered []string `json:"not_recovered"`
	Subscribed
	Protocol     int       `json:"protocol"`
	Features     []string  `json:"features"`
	HeartbeatMS  int64     `json:"heartbeat_ms"`
	DenseStreams []string  `json:"dense_streams"`
	ServerTime   time.Time `json:"server_time"`
	Limits       struct {
		FrameBytes      int64 `json:"frame_bytes"`
		PendingCommands int64 `json:"pending_commands"`
	} `json:"limits"`
}

// sessionEnded is the close code of a connection whose session the user has ended.
const sessionEnded = 4501

// Reconnects reports whether a client should connect again after an error of Client.Err, as docs/protocol.md describes.
// It returns false after the close codes 4500 to 4999, 1009 (a message was too large) and 1000 (normal closure), and
// true after any other error. After Client.Close, Reconnects usually returns true, because Err contains the code 1000
// only if the gateway's close frame was read before the socket was closed.
func Reconnects(err error) bool {
	var closed *websocket.CloseError
	if !errors.As(err, &closed) {
		return true
	}
	return closed.Code != websocket.CloseNormalClosure && closed.Code != websocket.CloseMessageTooBig &&
		(closed.Code < 4500 || closed.Code > 4999)
}

// Redial closes a connection, if it has not ended yet, and opens another connection that resumes from it. The new
// connection is to the gateway with the given URL or, if url is empty, to the same gateway. Events that the closed
// connection or earlier ones got are not delivered again. If Redial fails, it may be called again. The next call
// resumes after the events that the failed connection got. If the user has ended the session, the new connection begins
// another session, without missed events and without dropping repeats.
func (c *Client) Redial(ctx context.Context, url string) (*Client, error) {
	c.Close()
	o := c.options
	if url != "" {
		o.URL = url
	}
	before := c.newestVersions()
	if c.SessionEnded() {
		o.ResumeToken, o.SessionID, before = "", "", nil
	} else {
		o.ResumeToken, o.SessionID = c.ResumeToken(), cmp.Or(c.Connected().SessionID, o.SessionID)
	}
	next, err := dial(ctx, o, before)
	if err == nil {
		return next, nil
	}
	if next != nil { // the failed connection may have got some of the missed events and a resume token for them
		maps.Copy(c.seen, next.seen)
		token, ended := next.ResumeToken(), next.SessionEnded()
		c.mu.Lock()
		c.token, c.ended = token, c.ended || ended
		c.mu.Unlock()
	}
	return nil, err
}

// SessionEnded reports whether the user has ended the session of this connection. The program should then delete the
// session id and resume token that it has stored, and ask its user to sign in.
func (c *Client) SessionEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// endSession records that the user has ended the session, and deletes the session's resume token.
func (c *Client) endSession() {
	c.mu.Lock()
	ended := c.ended
	c.ended = true
	c.mu.Unlock()
	if !ended {
		c.resumable("")
	}
}

// newestVersions returns the newest version of each stream that an ended connection and the connections before it got.
func (c *Client) newestVersions() map[string]int64 {
	all := map[string]int64{}
	maps.Copy(all, c.before)
	maps.Copy(all, c.seen) // c.seen contains only newer versions
	return all
}

// connect sends the first frame, and returns when the connection is in every room of its user. Missed events are
// delivered before connect returns.
func (c *Client) connect(ctx context.Context) error {
	data := map[string]any{}
	for name, text := range map[string]string{"resume_token": c.options.ResumeToken, "session_id": c.options.SessionID,
		"device": c.options.Device} {
		if text != "" {
			data[name] = text
		}
	}
	if c.options.TokenInFrame {
		data["token"] = c.options.Token
	}
	if len(c.options.Rooms) > 0 {
		data["rooms"] = c.options.Rooms
	}
	_, err := c.Request(ctx, map[string]any{"type": "connect", "data": data})
	return err
}

// Connected returns the reply to connect.
func (c *Client) Connected() Connected {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected
}

// ResumeToken returns the newest resume token that this connection got or resumed from. It is empty if there is none,
// or if the user has ended the session.
func (c *Client) ResumeToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// resumable stores a resume token and calls OnResumeToken.
func (c *Client) resumable(token string) {
	c.mu.Lock()
	c.token = token
	c.mu.Unlock()
	if c.options.OnResumeToken != nil {
		c.options.OnResumeToken(token)
	}
}

// event calls OnEvent, unless an earlier connection got the event.
func (c *Client) event(e Event) {
	if had, follows := c.before[e.Stream]; follows && e.Version <= had {
		return
	}
	c.seen[e.Stream] = max(c.seen[e.Stream], e.Version)
	if c.options.OnEvent != nil {
		c.options.OnEvent(e)
	}
}
