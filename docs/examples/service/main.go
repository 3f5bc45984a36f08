// Command service is a service that consumes chat's topic. It prints the author and the length of each message. Several
// instances share the partitions of the topic.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kafka := backend.Kafka{Brokers: strings.Split(os.Getenv("KAFKA_BROKERS"), ","), TopicPrefix: os.Getenv("TOPIC_PREFIX")}
	subscriber, err := bus.NewSubscriber(kafka, bus.SubscriberOptions{Group: "example"})
	if err != nil {
		log.Fatal(err)
	}
	router, err := bus.NewRouter(bus.RouterOptions{Service: "example"})
	if err != nil {
		log.Fatal(err)
	}
	router.AddConsumerHandler("count", "chat-events", subscriber, count)
	if err := router.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// count prints the author and the length of a message. It is called for the events of one conversation in order, and at
// least once for each event. So a service that must not handle an event twice has to store, for each stream, the
// version of the last event that it has handled.
func count(m *message.Message) error {
	e, err := envelope.ReadEvent(m)
	if err != nil {
		return retry.Permanent(err) // do not retry, because the message stays unreadable
	}
	if e.Type != "chat.message_sent" {
		return nil
	}
	var sent chatv1.MessageSent
	if err := proto.Unmarshal(e.Body, &sent); err != nil {
		return retry.Permanent(err)
	}
	fmt.Printf("%s wrote %d characters at version %d of %s\n", e.Actor, len([]rune(sent.GetBody())), e.Version, e.Stream)
	return nil
}
