package bus_test

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
	"github.com/edumatrix/interlinked/shared/bus"
)

// A service handles the messages of a topic. It handles messages of the same key in order. A message that cannot be
// handled would become a dead letter in the topic "greeter.dead-letter".
func Example() {
	broker, err := embedded.StartKafka(embedded.KafkaOptions{})
	if err != nil {
		panic(err)
	}
	defer broker.Stop()
	k := backend.Kafka{Brokers: broker.Brokers(), ClientID: "example"}
	_, err = k.EnsureTopics(context.Background(), []catalog.Topic{
		{Name: "greetings", Partitions: 3, Retention: time.Hour},
		{Name: "greeter.dead-letter", Partitions: 3, Retention: time.Hour},
	})
	if err != nil {
		panic(err)
	}

	publisher, err := bus.NewPublisher(k, nil)
	if err != nil {
		panic(err)
	}
	defer func() { _ = publisher.Close() }()
	router, err := bus.NewRouter(bus.RouterOptions{Service: "greeter", Publisher: publisher,
		DeadLetterTopic: "greeter.dead-letter"})
	if err != nil {
		panic(err)
	}
	subscriber, err := bus.NewSubscriber(k, bus.SubscriberOptions{Group: "greeter"})
	if err != nil {
		panic(err)
	}
	handled := make(chan string)
	router.AddConsumerHandler("greet", "greetings", subscriber, func(m *message.Message) error {
		handled <- m.Metadata.Get(bus.MetadataKey) + ": " + string(m.Payload)
		return nil
	})
	stop, ended := make(chan struct{}), make(chan error)
	go func() { ended <- bus.RunRouter(context.Background(), stop, router) }()

	one := message.NewMessage("1", []byte("hello"))
	one.Metadata.Set(bus.MetadataKey, "alice")
	two := message.NewMessage("2", []byte("goodbye"))
	two.Metadata.Set(bus.MetadataKey, "alice")
	if err := publisher.Publish("greetings", one, two); err != nil {
		panic(err)
	}
	fmt.Println(<-handled)
	fmt.Println(<-handled)
	close(stop)
	<-ended
	// Output:
	// alice: hello
	// alice: goodbye
}
