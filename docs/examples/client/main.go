// Command client sends a message to a user, and prints the events that it receives, up to the event of this message.
// When the connection is lost, the client reconnects and gets the missed events.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/edumatrix/interlinked/shared/client"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: TOKEN=… client <user> <message>")
	}
	to, text := os.Args[1], os.Args[2]
	url := os.Getenv("GATEWAY_URL")
	if url == "" {
		url = "ws://127.0.0.1:3001/ws"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	events := make(chan client.Event, 100)
	// OnEvent is called for one event at a time. It must not call a method of c that waits for a reply.
	c, err := client.Dial(ctx, client.Options{URL: url, Token: os.Getenv("TOKEN"), Device: "example",
		OnEvent: func(e client.Event) { events <- e }})
	if err != nil {
		log.Fatal(err)
	}
	started, err := c.Command(ctx, "chat.start_direct", map[string]any{"user_id": to})
	if err != nil {
		log.Fatal(err)
	}
	conversation := strings.TrimPrefix(started.Stream, "conversation:")
	sent, err := c.Command(ctx, "chat.send_message", map[string]any{"conversation_id": conversation, "body": text})
	if err != nil {
		log.Fatal(err) // a *client.Error has the code of the refusal
	}
	for {
		select {
		case e := <-events:
			fmt.Printf("%s %d by %s: %s\n", e.Type, e.Version, e.Actor, e.Data)
			if e.Stream == sent.Stream && e.Version == sent.Version {
				c.Close()
				return
			}
		case <-c.Done(): // the connection is lost; after the reconnect, missed events arrive before newer ones
			if c, err = c.Redial(ctx, url); err != nil {
				log.Fatal(err)
			}
		case <-ctx.Done():
			log.Fatal("the message did not arrive within a minute")
		}
	}
}
