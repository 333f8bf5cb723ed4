# Listens with Mojo::UserAgent of Perl. It reads a job from each line of standard input, and prints what the library
# gave as JSON, one object on each line.
#
# Without `set` the library is used as its documentation shows. With it the setting of docs/libraries.md is used.

use Mojo::Base -strict, -signatures;
use MIME::Base64 'encode_base64';
use Mojo::IOLoop;
use Mojo::IOLoop::Stream;
use Mojo::JSON qw(decode_json encode_json);
use Mojo::UserAgent;

my $pause = 0.1;
my %final = map { $_ => 1 } 400, 401, 403, 404;
STDOUT->autoflush;

sub say_of ($job, %what) { say encode_json({job => $job->{job}, %what}) }

sub frame ($job, $bytes, $is_text) {
  my $head = $bytes;
  if ($is_text) {
    # `decode` of Mojo refuses letters such as U+FFFF.
    utf8::decode(my $text = $bytes);
    say_of $job, type => 'frame', frame => $text;
  }
  else {
    say_of $job, type => 'bytes', data => encode_base64($bytes, '');
    ($head) = split /\n/, $bytes, 2;
  }
  # JSON of Mojo refuses them too. Only the cursor is needed here.
  my $name = $head =~ /^\{"type":"message"/ ? 'id' : 'cursor';
  $job->{after} = $1 if $head =~ /"$name":"(\d+)"/;
}

sub read_from ($job) {
  my $agent = $job->{agent} = Mojo::UserAgent->new;
  $agent->inactivity_timeout(60) if $job->{set};
  my %headers = $job->{token} ? (Authorization => "Bearer $job->{token}") : ();
  my $again = sub ($is_final) {
    return say_of $job, type => 'end' if $is_final || !$job->{set};
    Mojo::IOLoop->timer($pause => sub { read_from($job) });
  };
  $agent->websocket("$job->{url}?after=$job->{after}" => \%headers => sub ($agent, $answer) {
    if (!$answer->is_websocket) {
      my $code = $answer->res->code // 0;
      say_of $job, type => 'error', text => "$code " . ($answer->res->body // '');
      return $again->($final{$code});
    }
    $answer->max_websocket_size(2 << 20) if $job->{set};
    $answer->on(text   => sub ($answer, $bytes) { frame($job, $bytes, 1) });
    $answer->on(binary => sub ($answer, $bytes) { frame($job, $bytes, 0) });
    $answer->on(finish => sub ($answer, $code, $reason) {
      say_of $job, type => 'error', text => "closed $code " . ($reason // '');
      $again->($code >= 4000 && $code < 4100);
    });
  });
}

my $input = '';
my $stream = Mojo::IOLoop::Stream->new(\*STDIN)->timeout(0);
$stream->on(read => sub ($stream, $bytes) {
  $input .= $bytes;
  read_from(decode_json $1) while $input =~ s/^(.*)\n//;
});
$stream->on(close => sub { Mojo::IOLoop->stop });
$stream->start;
Mojo::IOLoop->start;
