/** Java's own HTTP client, which offers h2c with every plain request: Ask.java PROXY-ADDRESS PROXY-PORT URL. */
import java.net.InetSocketAddress;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

class Ask {
    public static void main(String[] args) throws Exception {
        var proxy = ProxySelector.of(new InetSocketAddress(args[0], Integer.parseInt(args[1])));
        var client = HttpClient.newBuilder().proxy(proxy).build();
        var request = HttpRequest.newBuilder(URI.create(args[2])).build();
        var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.print(answer.statusCode() + " " + answer.body());
    }
}
