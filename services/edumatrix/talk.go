package edumatrix

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/client"
)

// talk is the terminal client: it sends typed lines, and prints the messages of the conversation.
func talk(ctx context.Context, t Terminal, args []string) error {
	f := flags("chat", t)
	user := f.String("user", "", "id of the user who connects")
	to := f.String("to", "", "id of the user to chat with; reuses the existing direct conversation")
	conversation := f.String("conversation", "", "id of a conversation to talk in")
	url := f.String("url", "", "socket of the gateway (default: the mesh that runs in the data directory)")
	bearer := f.String("token", "", "token to connect with (default: one is minted for --user)")
	if err := parse(f, args); err != nil {
		return err
	}
	if *user == "" && *bearer == "" || (*to == "") == (*conversation == "") {
		fmt.Fprintln(t.Err, "edumatrix chat needs --user, and either --to or --conversation")
		return errUsage
	}
	mesh, err := findMesh(t.Getenv)
	if err != nil && (*url == "" || *bearer == "") {
		return err
	}
	if *url == "" {
		*url = mesh.Socket
	}
	if *bearer == "" {
		if *bearer, err = mesh.mint(*user, "", 24*time.Hour); err != nil {
			return err
		}
	}
	return (&conversationOnTerminal{Terminal: t, url: *url, token: *bearer, user: *user, to: *to,
		conversation: *conversation}).run(ctx)
}

// conversationOnTerminal is the terminal client of one conversation. When the connection is lost, it reconnects and
// prints the missed messages from the history. It ends instead if the close code forbids a reconnect.
type conversationOnTerminal struct {
	Terminal
	url, token, user, to string
	conversation         string
	greeted              bool
	shown                int64 // the version up to which messages were printed
	unsent               []unsent
	events               chan client.Event
	dropped              dropped
}

// dropped contains, for each stream, the newest version that was dropped because the terminal did not accept output. A
// stopped terminal must not delay the connection. The dropped messages are printed later, from the history.
type dropped struct {
	mu     sync.Mutex
	newest map[string]int64
}

func (d *dropped) add(e client.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.newest == nil {
		d.newest = map[string]int64{}
	}
	d.newest[e.Stream] = e.Version
}

func (d *dropped) of(stream string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.newest[stream]
}

func (c *conversationOnTerminal) run(ctx context.Context) error {
	lines := make(chan string)
	go func() {
		defer close(lines)
		c.read(ctx, lines)
	}()
	for first := true; ; first = false {
		c.events = make(chan client.Event, unread)
		conn, err := c.connect(ctx)
		if err != nil {
			if first || ctx.Err() != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
				continue
			}
		}
		err = c.converse(ctx, conn, lines)
		conn.Close()
		var closed *websocket.CloseError
		if !errors.Is(err, client.ErrClosed) {
			return err
		} else if errors.As(err, &closed) && !client.Reconnects(err) {
			return fmt.Errorf("the gateway has closed the connection: %s", closed.Text)
		}
		fmt.Fprintln(c.Err, "connection lost, connecting again")
	}
}

// maxLine is the maximum number of characters of a message (chat.send_message).
const maxLine = 8000

// read sends typed lines to a channel until the input or ctx ends. It skips empty lines, and lines with more than
// maxLine characters.
func (c *conversationOnTerminal) read(ctx context.Context, lines chan<- string) {
	for in := bufio.NewReader(c.In); ; {
		line, err := in.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); utf8.RuneCountInString(line) > maxLine {
			fmt.Fprintf(c.Err, "not sent: a line of %d characters, the maximum is %d\n",
				utf8.RuneCountInString(line), maxLine)
			line = ""
		}
		if line != "" {
			select {
			case lines <- line:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// unread is the maximum number of events that wait to be printed.
const unread = 256

func (c *conversationOnTerminal) connect(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	events := c.events
	host, _ := os.Hostname() // an empty name is fine
	device := strings.TrimSpace("terminal " + host)
	conn, err := client.Dial(ctx, client.Options{URL: c.url, Token: c.token, Device: device, OnEvent: func(e client.Event) {
		select {
		case events <- e:
		default: // the channel is full
			c.dropped.add(e)
		}
	}})
	if err != nil {
		return nil, err
	}
	if c.conversation == "" {
		o, err := conn.Command(ctx, "chat.start_direct", map[string]string{"user_id": c.to})
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("start a conversation with %s: %w", c.to, err)
		}
		c.conversation = strings.TrimPrefix(o.Stream, "conversation:")
	}
	if err := c.catchUp(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// catchUp prints the newest page of the history when it is first called, and later the messages that have not been
// printed yet.
func (c *conversationOnTerminal) catchUp(ctx context.Context, conn *client.Client) error {
	for {
		var page struct {
			Messages []struct {
				Version int64     `json:"version"`
				Author  string    `json:"author"`
				Body    string    `json:"body"`
				SentAt  time.Time `json:"sent_at"`
				Deleted bool      `json:"deleted"`
			} `json:"messages"`
			More    bool  `json:"more"`
			Version int64 `json:"version"`
		}
		first := !c.greeted
		request := map[string]any{"conversation_id": c.conversation}
		if !first {
			request["after"] = c.shown // without "after", the query returns the newest messages
		}
		err := conn.Query(ctx, "chat.history", request, &page)
		if err != nil {
			return fmt.Errorf("history: %w", err)
		}
		if first {
			fmt.Fprintf(c.Out, "conversation %s — type a line to send it, Ctrl-D ends\n", c.conversation)
			c.greeted = true
		}
		for _, m := range page.Messages {
			if !m.Deleted {
				c.show(m.SentAt, m.Author, m.Body)
			}
			c.shown = m.Version
		}
		if first || !page.More || len(page.Messages) == 0 {
			c.shown = max(c.shown, page.Version) // no message up to this version is printed again
			return nil
		}
	}
}

// catchUpDropped prints the messages that were dropped because the terminal accepted no output. It reads them from the
// history. It is called before any newer message is printed. It retries for at most 15 s, because the history may be
// slightly behind the live events.
func (c *conversationOnTerminal) catchUpDropped(ctx context.Context, conn *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for c.dropped.of(c.stream()) > c.shown {
		if err := c.catchUp(ctx, conn); err != nil {
			return err
		}
		if c.dropped.of(c.stream()) <= c.shown {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("history: %w", context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

func (c *conversationOnTerminal) stream() string { return "conversation:" + c.conversation }

// tryAgain is the pause before lines without an outcome are sent again on the same connection. They are sent earlier if
// the user enters another line.
const tryAgain = 2 * time.Second

func (c *conversationOnTerminal) converse(ctx context.Context, conn *client.Client, lines <-chan string) error {
	again := time.NewTimer(0) // at once, to resend lines that got no outcome on an earlier connection
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-conn.Done():
			return conn.Err()
		case e := <-c.events:
			if err := c.catchUpDropped(ctx, conn); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return fmt.Errorf("%w: %w", client.ErrClosed, err) // the caller reconnects, which reads the history
			}
			c.showEvent(e)
		case <-again.C:
			if !c.sendAll(ctx, conn) {
				again.Reset(tryAgain)
			}
		case line, open := <-lines:
			if !open {
				if len(c.unsent) > 0 && !c.sendAll(ctx, conn) {
					fmt.Fprintf(c.Err, "%d lines may not have been sent\n", len(c.unsent))
				}
				return nil
			}
			if strings.TrimSpace(line) == "" {
				continue
			}
			c.unsent = append(c.unsent, unsent{uuid.NewString(), line})
			if !c.sendAll(ctx, conn) {
				again.Reset(tryAgain)
			}
		}
	}
}

// unsent is a line without an outcome. It is sent again with the same command id, so the line becomes only one message.
type unsent struct{ id, line string }

// sendAll sends the lines without an outcome, in order, and reports whether each of them now has an outcome or was
// accepted as queued.
func (c *conversationOnTerminal) sendAll(ctx context.Context, conn *client.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for len(c.unsent) > 0 {
		next := c.unsent[0]
		_, err := conn.CommandAs(ctx, next.id, "chat.send_message",
			map[string]string{"conversation_id": c.conversation, "body": next.line})
		var refused *client.Error
		switch {
		case err == nil:
		case !errors.As(err, &refused) || refused.Code == refusal.Unavailable:
			fmt.Fprintln(c.Err, "not sent yet; retrying")
			return false
		case refused.Code == refusal.Queued:
			fmt.Fprintln(c.Err, "accepted; the outcome follows")
		default:
			fmt.Fprintf(c.Err, "not sent: %s\n", printable(refused.Error()))
		}
		c.unsent = c.unsent[1:]
	}
	return true
}

func (c *conversationOnTerminal) showEvent(e client.Event) {
	if e.Stream != c.stream() || e.Version <= c.shown {
		return
	}
	c.shown = e.Version
	var data struct {
		Body   string `json:"body"`
		UserID string `json:"user_id"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	switch e.Type {
	case "chat.message_sent":
		c.show(e.Time, e.Actor, data.Body)
	case "chat.message_edited":
		c.show(e.Time, e.Actor, "(edited) "+data.Body)
	case "chat.message_deleted":
		c.show(e.Time, e.Actor, "(deleted a message)")
	case "chat.member_added":
		c.show(e.Time, data.UserID, "(was added)")
	case "chat.member_left":
		c.show(e.Time, data.UserID, "(left)")
	}
}

func (c *conversationOnTerminal) show(at time.Time, who, text string) {
	fmt.Fprintf(c.Out, "%s %s: %s\n", at.Local().Format("15:04"), printable(who), printable(text))
}

// printable puts a dot in place of each character with which other users could control the terminal or reverse the
// direction of the text around it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\u200c', r == '\u200d': // U+200C and U+200D occur within words and emoji
			return r
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp), unicode.Is(unicode.Bidi_Control, r):
			return '·'
		}
		return r
	}, s)
}
